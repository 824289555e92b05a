"""The weights of the encoders that metrics use (`models/encoders`), from their published files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders import ClipText, VisionTransformer
from diffusion_jax.weights.folders import read_config
from diffusion_jax.weights.names import (
    Entry,
    State,
    WeightMap,
    dense,
    norm,
    patch_embedding,
    prefixed,
    same,
    stacked,
)
from diffusion_jax.weights.names import (
    Path as TreePath,
)
from diffusion_jax.weights.published.clip import clip_image_map, clip_text_map, token_shapes, vision_shapes
from diffusion_jax.weights.reading import fingerprint, read_state

DINOV2_SOURCE = (
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth "
    "(SHA-256 d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428)"
)
CLIP_SOURCE = (
    "the folder https://huggingface.co/openai/clip-vit-large-patch14-336 with config.json, tokenizer.json and "
    "pytorch_model.bin (SHA-256 c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801) or model.safetensors"
)
END_OF_TEXT = "<|endoftext|>"
_HEAD_CHANNELS = 64  # in all sizes of both that are read here
Entries = dict[TreePath, Entry]


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP's two encoders with their parameters.

    Attributes:
      image, text: the networks, and their parameters.
      folder: the folder that they were read from, with the tokenizer.
      fingerprint: SHA-256 of the file of weights.
    """

    image: VisionTransformer
    image_params: PyTree
    text: ClipText
    text_params: PyTree
    folder: Path
    fingerprint: str

    def of_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n channels"]:
        """Embeddings of texts, of length 1; texts that are too long for the encoder are cut.

        Raises:
          UserError: the folder has no tokenizer.
        """
        import tokenizers

        file = self.folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"{self.folder} has no tokenizer.json; it is published beside the weights: {CLIP_SOURCE}")
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        end = tokenizer.token_to_id(END_OF_TEXT)
        if end != self.text.vocabulary - 1:
            raise UserError(f"{file} is not the tokenizer of these weights: {END_OF_TEXT} is token {end}")
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.text.length)
        tokens = np.full((len(texts), self.text.length), end, np.int32)
        for row, text in zip(tokens, tokenizer.encode_batch(list(texts)), strict=True):
            row[: len(text.ids)] = text.ids
        with jax.default_matmul_precision("highest"):
            found = np.asarray(self.text.apply({"params": self.text_params}, tokens).projected)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)


def read_dinov2(path: Path | str) -> tuple[VisionTransformer, PyTree, str]:
    """DINOv2 without registers, its parameters, and the SHA-256 of the file; FD-DINOv2 is defined with ViT-L/14.

    Raises:
      UserError: there is no such file (the error says where it is published), or it has other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights of DINOv2 at {str(path)!r}; they are published at {DINOV2_SOURCE}")
    state = read_state(path)
    hidden, patch = _patch_shape(state, "patch_embed.proj.weight", path)
    network = VisionTransformer(
        patch_size=patch,
        grid=_grid(state, "pos_embed", path),
        width=hidden,
        depth=_depth(state, "blocks.", path),
        layer_scale=True,
    )
    params = dinov2_map(network).params(state, vision_shapes(network))
    return network, params, fingerprint(path)


def dinov2_map(network: VisionTransformer) -> WeightMap:
    """The names of torch hub's files."""

    def block(i: int) -> Entries:
        there = f"blocks.{i}"
        return {
            **prefixed("norm_1", norm(f"{there}.norm1")),
            **prefixed("qkv", dense(f"{there}.attn.qkv")),
            **prefixed("attention_out", dense(f"{there}.attn.proj")),
            ("scale_1",): same(f"{there}.ls1.gamma"),
            **prefixed("norm_2", norm(f"{there}.norm2")),
            **prefixed("mlp_in", dense(f"{there}.mlp.fc1")),
            **prefixed("mlp_out", dense(f"{there}.mlp.fc2")),
            ("scale_2",): same(f"{there}.ls2.gamma"),
        }

    entries = {
        ("class_token",): same("cls_token").then(lambda x: x[0, 0], lambda x: x[None, None]),
        ("position",): same("pos_embed").then(lambda x: x[0], lambda x: x[None]),
        **prefixed("patch_embedding", patch_embedding("patch_embed.proj", patch=network.patch_size, channels=3)),
        **prefixed("norm", norm("norm")),
        **stacked("blocks", map(block, range(network.depth))),
    }
    return WeightMap(entries, ignored=("mask_token",))


def read_clip(path: Path | str) -> Clip:
    """CLIP from a folder written by Hugging Face's `transformers`; CMMD is defined with ViT-L/14 at 336 pixels.

    Raises:
      UserError: there is no such folder (the error says where it is published), or it has other weights.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"there is no CLIP at {str(path)!r}; it is published as {CLIP_SOURCE}")
    state, config = read_state(path), read_config(path) or {}
    hidden, patch = _patch_shape(state, "vision_model.embeddings.patch_embedding.weight", path)
    image = VisionTransformer(
        patch_size=patch,
        grid=_grid(state, "vision_model.embeddings.position_embedding.weight", path),
        width=hidden,
        depth=_depth(state, "vision_model.encoder.layers.", path),
        projection=_shape(state, "visual_projection.weight", path)[0],
        first_norm=True,
        patch_bias=False,
        activation=_activation(config.get("vision_config", {}), path),
        norm_eps=1e-5,
    )
    vocabulary, width = _shape(state, "text_model.embeddings.token_embedding.weight", path)
    text = ClipText(
        vocabulary=vocabulary,
        length=_shape(state, "text_model.embeddings.position_embedding.weight", path)[0],
        width=width,
        depth=_depth(state, "text_model.encoder.layers.", path),
        num_heads=width // _HEAD_CHANNELS,
        hidden_units=4 * width,
        projection=_shape(state, "text_projection.weight", path)[0],
        activation=_activation(config.get("text_config", {}), path),
    )
    whole = WeightMap(
        {
            **prefixed("image", clip_image_map(image).entries),
            **prefixed("text", clip_text_map(text, ()).entries),
        },
        ignored=("logit_scale", r".*\.position_ids"),
    )
    shapes = {"image": vision_shapes(image), "text": token_shapes(text)}
    params = whole.params(state, shapes)
    return Clip(image, params["image"], text, params["text"], path, fingerprint(path))


def _shape(state: State, name: str, path: Path) -> tuple[int, ...]:
    if name not in state:
        raise UserError(
            f"{path} has no tensor {name}: these are other weights; there are {', '.join(list(state)[:4])} ..."
        )
    return np.shape(state[name])


def _patch_shape(state: State, name: str, path: Path) -> tuple[int, int]:
    shape = _shape(state, name, path)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[0] % _HEAD_CHANNELS:
        raise UserError(f"{name} of {path} has shape {shape}: that is not an embedding of patches of RGB images")
    return shape[0], shape[2]


def _grid(state: State, name: str, path: Path) -> int:
    tokens = _shape(state, name, path)[-2]
    grid = round((tokens - 1) ** 0.5)
    if grid**2 != tokens - 1:
        raise UserError(f"{name} of {path} has {tokens} positions, which are not a square and one")
    return grid


def _depth(state: State, prefix: str, path: Path) -> int:
    depth = len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
    if not depth:
        raise UserError(f"{path} has no tensors {prefix}...: these are other weights")
    return depth


def _activation(config: dict, path: Path) -> str:
    name = config.get("hidden_act", "quick_gelu")
    if name not in ("gelu", "quick_gelu"):
        raise UserError(f"{path}/config.json names the activation {name!r}; gelu and quick_gelu are known")
    return name
