"""Names of transformers elsewhere: DiT and SiT, diffusers' DiT, U-ViT, JiT, Min-SNR's ViT, and DDiT of MDLM and
SEDD."""

from diffusion_jax.errors import UserError
from diffusion_jax.models import DDiT, DiT, JiT, UViT, ViT
from diffusion_jax.models.positions import position_embedding
from diffusion_jax.weights.names import (
    Entry,
    Path,
    WeightMap,
    conv,
    dense,
    norm,
    patch_embedding,
    prefixed,
    same,
    separate_qkv,
    stacked,
)

Entries = dict[Path, Entry]


def _position(network: DiT | JiT):
    return position_embedding(network.image_size // network.patch_size, network.hidden_size)


def _require_sines(network: DiT) -> None:
    if network.positions != "sine":
        raise UserError(f"published DiTs have sine positions, and this one {network.positions}: keep it as a run")


def dit(network: DiT) -> WeightMap:
    """The `.pt` files of DiT and SiT (they differ in nothing here)."""
    _require_sines(network)
    entries = {
        **prefixed(
            "patch_embedding",
            patch_embedding("x_embedder.proj", patch=network.patch_size, channels=network.image_channels),
        ),
        **prefixed("conditioning/time/dense_0", dense("t_embedder.mlp.0")),
        **prefixed("conditioning/time/dense_1", dense("t_embedder.mlp.2")),
        **prefixed("final/modulation", dense("final_layer.adaLN_modulation.1")),
        **prefixed("final/linear", dense("final_layer.linear")),
    }
    if network.num_classes:
        entries["conditioning", "label", "embedding"] = same("y_embedder.embedding_table.weight")

    def block(i: int) -> Entries:
        return {
            **prefixed("modulation", dense(f"blocks.{i}.adaLN_modulation.1")),
            **prefixed("qkv", dense(f"blocks.{i}.attn.qkv")),
            **prefixed("attention_out", dense(f"blocks.{i}.attn.proj")),
            **prefixed("mlp_in", dense(f"blocks.{i}.mlp.fc1")),
            **prefixed("mlp_out", dense(f"blocks.{i}.mlp.fc2")),
        }

    blocks = stacked("blocks", map(block, range(network.depth)))
    return WeightMap({**entries, **blocks}, constants={"pos_embed": _position(network)[None]})


def diffusers_dit(network: DiT) -> WeightMap:
    """diffusers' DiTTransformer2DModel, where every block has its own copy of the embeddings of time and label."""
    _require_sines(network)
    entries = {
        **prefixed(
            "patch_embedding",
            patch_embedding("pos_embed.proj", patch=network.patch_size, channels=network.image_channels),
        ),
        **prefixed("final/modulation", dense("proj_out_1")),
        **prefixed("final/linear", dense("proj_out_2")),
    }

    def conditioning(i: int) -> Entries:
        there = f"transformer_blocks.{i}.norm1.emb"
        return {
            **prefixed("time/dense_0", dense(f"{there}.timestep_embedder.linear_1")),
            **prefixed("time/dense_1", dense(f"{there}.timestep_embedder.linear_2")),
            ("label", "embedding"): same(f"{there}.class_embedder.embedding_table.weight"),
        }

    def block(i: int) -> Entries:
        there = f"transformer_blocks.{i}"
        return {
            **prefixed("modulation", dense(f"{there}.norm1.linear")),
            **prefixed("qkv", separate_qkv([f"{there}.attn1.to_{letter}" for letter in "qkv"])),
            **prefixed("attention_out", dense(f"{there}.attn1.to_out.0")),
            **prefixed("mlp_in", dense(f"{there}.ff.net.0.proj")),
            **prefixed("mlp_out", dense(f"{there}.ff.net.2")),
        }

    layers = range(network.depth)
    all_entries = {
        **entries,
        **stacked("conditioning", map(conditioning, layers)),
        **stacked("blocks", map(block, layers)),
    }
    position = "pos_embed.pos_embed"
    return WeightMap(all_entries, constants={position: _position(network)[None]}, unwritten=(position,))


def uvit(network: UViT) -> WeightMap:
    """U-ViT's `.pth` files."""
    entries = {
        **prefixed(
            "patch_embedding",
            patch_embedding("patch_embed.proj", patch=network.patch_size, channels=network.image_channels),
        ),
        ("position",): same("pos_embed").then(lambda x: x[0], lambda x: x[None]),
        **prefixed("norm_out", norm("norm")),
        **prefixed("linear_out", dense("decoder_pred")),
    }
    if network.time_mlp:
        entries |= {**prefixed("time_0", dense("time_embed.0")), **prefixed("time_1", dense("time_embed.2"))}
    if network.num_classes:
        entries["label", "embedding"] = same("label_emb.weight")
    if network.context_channels:
        entries |= prefixed("context", dense("context_embed"))
    if network.last_convolution:
        entries |= prefixed("conv_out", conv("final_layer"))

    def block(there: str) -> Entries:
        skip = prefixed("skip", dense(f"{there}.skip_linear")) if there.startswith("out_blocks") else {}
        return {
            **prefixed("norm_0", norm(f"{there}.norm1")),
            **prefixed("qkv", dense(f"{there}.attn.qkv", bias=False)),
            **prefixed("attention_out", dense(f"{there}.attn.proj")),
            **prefixed("norm_1", norm(f"{there}.norm2")),
            **prefixed("mlp_in", dense(f"{there}.mlp.fc1")),
            **prefixed("mlp_out", dense(f"{there}.mlp.fc2")),
            **skip,
        }

    half = range(network.depth // 2)
    down = stacked("down", [block(f"in_blocks.{i}") for i in half])
    up = stacked("up", [block(f"out_blocks.{i}") for i in half])
    return WeightMap({**entries, **down, **prefixed("middle", block("mid_block")), **up})


def min_snr_vit(network: ViT) -> WeightMap:
    """The `.pt` files of Min-SNR's ViTs."""
    entries = {
        **prefixed(
            "patch_embedding",
            patch_embedding("patch_embed.proj", patch=network.patch_size, channels=network.image_channels),
        ),
        ("position",): same("pos_embed").then(lambda x: x[0], lambda x: x[None]),
        ("time",): same("time_embedding.weight"),
        **prefixed("out", dense("linear_projection")),
    }
    if network.num_classes:
        entries["label", "embedding"] = same("class_embedding.weight")

    def block(i: int) -> Entries:
        there = f"blocks.{i}"
        return {
            **prefixed("norm_0", norm(f"{there}.norm1")),
            **prefixed("qkv", dense(f"{there}.attn.qkv", bias=False)),
            ("query_bias",): same(f"{there}.attn.q_bias"),
            ("value_bias",): same(f"{there}.attn.v_bias"),
            **prefixed("attention_out", dense(f"{there}.attn.proj")),
            **prefixed("norm_1", norm(f"{there}.norm2")),
            **prefixed("mlp_in", dense(f"{there}.mlp.fc1")),
            **prefixed("mlp_out", dense(f"{there}.mlp.fc2")),
        }

    return WeightMap({**entries, **stacked("blocks", map(block, range(network.depth)))})


def jit(network: JiT) -> WeightMap:
    """JiT's checkpoints."""
    entries = {
        **prefixed(
            "patch_bottleneck",
            patch_embedding("x_embedder.proj1", patch=network.patch_size, channels=network.image_channels, bias=False),
        ),
        **prefixed("patch_embedding", dense("x_embedder.proj2", ndim=4)),
        **prefixed("time/dense_0", dense("t_embedder.mlp.0")),
        **prefixed("time/dense_1", dense("t_embedder.mlp.2")),
        **prefixed("norm_out", norm("final_layer.norm_final", bias=False)),
        **prefixed("modulation", dense("final_layer.adaLN_modulation.1")),
        **prefixed("linear_out", dense("final_layer.linear")),
    }
    if network.num_classes:
        entries["label", "embedding"] = same("y_embedder.embedding_table.weight")
        if network.context_tokens:
            entries["context_position",] = same("in_context_posemb").then(lambda x: x[0], lambda x: x[None])

    def block(i: int) -> Entries:
        there = f"blocks.{i}"
        return {
            **prefixed("modulation", dense(f"{there}.adaLN_modulation.1")),
            **prefixed("norm_0", norm(f"{there}.norm1", bias=False)),
            **prefixed("qkv", dense(f"{there}.attn.qkv")),
            **prefixed("query_norm", norm(f"{there}.attn.q_norm", bias=False)),
            **prefixed("key_norm", norm(f"{there}.attn.k_norm", bias=False)),
            **prefixed("attention_out", dense(f"{there}.attn.proj")),
            **prefixed("norm_1", norm(f"{there}.norm2", bias=False)),
            **prefixed("mlp_in", dense(f"{there}.mlp.w12")),
            **prefixed("mlp_out", dense(f"{there}.mlp.w3")),
        }

    before = stacked("before", map(block, range(network.context_start)))
    after = stacked("after", map(block, range(network.context_start, network.depth)))
    return WeightMap(
        {**entries, **before, **after},
        constants={"pos_embed": _position(network)[None]},
        ignored=(r"feat_rope.*\.freqs_(cos|sin)",),
    )


def ddit(network: DDiT) -> WeightMap:
    """MDLM's network (and SEDD's, which is the same)."""
    entries = {
        ("tokens",): same("vocab_embed.embedding"),
        **prefixed("time/dense_0", dense("sigma_map.mlp.0")),
        **prefixed("time/dense_1", dense("sigma_map.mlp.2")),
        **prefixed("norm_out", norm("output_layer.norm_final", bias=False)),
        **prefixed("modulation", dense("output_layer.adaLN_modulation")),
        **prefixed("linear_out", dense("output_layer.linear")),
    }

    def block(i: int) -> Entries:
        there = f"blocks.{i}"
        return {
            **prefixed("modulation", dense(f"{there}.adaLN_modulation")),
            **prefixed("norm_0", norm(f"{there}.norm1", bias=False)),
            **prefixed("qkv", dense(f"{there}.attn_qkv", bias=False)),
            **prefixed("attention_out", dense(f"{there}.attn_out", bias=False)),
            **prefixed("norm_1", norm(f"{there}.norm2", bias=False)),
            **prefixed("mlp_in", dense(f"{there}.mlp.0")),
            **prefixed("mlp_out", dense(f"{there}.mlp.2")),
        }

    blocks = stacked("blocks", map(block, range(network.depth)))
    return WeightMap({**entries, **blocks}, ignored=(r"rotary_emb\.inv_freq",))
