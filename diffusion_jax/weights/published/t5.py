"""T5's and ByT5's encoders, in `transformers`' format."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders.t5 import T5Encoder
from diffusion_jax.weights.components import COMPONENTS, Component
from diffusion_jax.weights.names import Entry, Path, WeightMap, dense, norm, prefixed, same, separate_qkv, stacked
from diffusion_jax.weights.published.clip import ACTIVATION_NAMES, token_shapes
from diffusion_jax.weights.published.config_fields import GENERATION, counted, read_fields

_TRAINING = ("dropout_rate", "classifier_dropout")
_DECODER = ("num_decoder_layers", "eos_token_id", "pad_token_id", "scale_decoder_outputs")
# For the MLP, "dense_act_fn" and "is_gated_act" repeat "feed_forward_proj".
_REPEATED = ("dense_act_fn", "is_gated_act")
_EMBEDDING, _REPEATED_EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"


def t5_encoder(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> T5Encoder:
    """The encoder that a config describes."""
    found = read_fields(
        config,
        read={
            "vocab_size": 32_128,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_heads": 8,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "relu",
        },
        ignored=(*_TRAINING, *_DECODER, *_REPEATED, *GENERATION),
    )
    counted(found, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    counted(found, "relative_attention_num_buckets", "relative_attention_max_distance")
    gate, _, rest = found["feed_forward_proj"].partition("-")
    gated, name = (True, rest) if gate == "gated" else (False, found["feed_forward_proj"])
    if name not in ACTIVATION_NAMES:
        raise UserError(f"config.json says feed_forward_proj = {found['feed_forward_proj']!r}, which is not known")
    # There, the name "gated-gelu" means the approximation by tanh.
    approximate = found["feed_forward_proj"] == "gated-gelu"
    return T5Encoder(
        vocabulary=found["vocab_size"],
        width=found["d_model"],
        depth=found["num_layers"],
        num_heads=found["num_heads"],
        head_channels=found["d_kv"],
        hidden_units=found["d_ff"],
        buckets=found["relative_attention_num_buckets"],
        max_distance=found["relative_attention_max_distance"],
        gated=gated,
        activation="gelu_tanh" if approximate else ACTIVATION_NAMES[name],
        norm_eps=found["layer_norm_epsilon"],
        dtype=dtype,
    )


def t5_map(network: T5Encoder, names: Collection[str]) -> WeightMap:
    """The names of `T5EncoderModel`; the token table may occur under two names, or only under the second."""

    def block(i: int) -> dict[Path, Entry]:
        first, second = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        entries = {
            **prefixed("norm_1", norm(f"{first}.layer_norm", bias=False)),
            **prefixed("qkv", separate_qkv([f"{first}.SelfAttention.{letter}" for letter in "qkv"], bias=False)),
            **prefixed("attention_out", dense(f"{first}.SelfAttention.o", bias=False)),
            **prefixed("norm_2", norm(f"{second}.layer_norm", bias=False)),
            **prefixed("mlp_out", dense(f"{second}.DenseReluDense.wo", bias=False)),
        }
        there = f"{second}.DenseReluDense"
        if network.gated:
            entries |= prefixed("gate", dense(f"{there}.wi_0", bias=False))
        return entries | prefixed("mlp_in", dense(f"{there}.{'wi_1' if network.gated else 'wi'}", bias=False))

    known = [name for name in (_EMBEDDING, _REPEATED_EMBEDDING) if name in names] or [_EMBEDDING]
    entries = {
        ("embedding",): _equal(known),
        ("position",): same("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        **prefixed("norm", norm("encoder.final_layer_norm", bias=False)),
        **stacked("blocks", map(block, range(network.depth))),
    }
    return WeightMap(entries)


def _equal(names: Sequence[str]) -> Entry:
    """One parameter that a file holds under several names."""

    def read(tensors: Sequence[np.ndarray]) -> np.ndarray:
        if any(not np.array_equal(tensors[0], other) for other in tensors[1:]):
            raise ValueError(f"{' and '.join(names)} are one table of tokens, and the file has two that differ")
        return tensors[0]

    return Entry(tuple(names), read, lambda ours: [ours] * len(names))


@COMPONENTS.register("T5EncoderModel")
def _t5() -> Component:
    return Component(build=t5_encoder, weight_map=t5_map, shapes=token_shapes)
