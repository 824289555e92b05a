"""BERT (Devlin et al. 2018, arXiv:1810.04805) as a text encoder: MiniLM and similar models, with published weights.

Layer norms follow the branches, and learned positions and the first sentence's segment are added to the tokens. The
pooled vector is the mean over all tokens but padding, as in sentence encoders (Reimers & Gurevych 2019,
arXiv:1908.10084), and is not normalised to length 1.
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json
from diffusion_jax.models.attention import self_attention
from diffusion_jax.models.encoders.text import TEXT_ENCODERS, Encoded, Encoder, Mask, Tokens
from diffusion_jax.models.layers import QKV, Dense, at_least_float32

# Fields of config.json, and their names here.
_SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "hidden_units",
    "max_position_embeddings": "positions",
    "type_vocab_size": "segments",
    "layer_norm_eps": "norm_eps",
}


class BertBlock(nn.Module, kw_only=True):
    """Attention and MLP, each followed by a layer norm; in the form that a scan needs."""

    num_heads: int
    hidden_units: int
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, mask: Mask) -> tuple[Tokens, None]:
        width = x.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype, use_fast_variance=False)
        qkv = QKV(features=width, dtype=self.dtype, name="qkv")(x)
        h = dense(width, name="attention_out")(self_attention(qkv, self.num_heads, mask=mask))
        x = norm(name="norm_1")(x + h)
        h = nn.gelu(dense(self.hidden_units, name="mlp_in")(x), approximate=False)
        return norm(name="norm_2")(x + dense(width, name="mlp_out")(h)), None


class Bert(Encoder, kw_only=True):
    """BERT's encoder.

    Attributes:
      width, depth, num_heads, hidden_units: of the transformer and its MLPs.
      positions: the largest number of tokens of a text.
      segments: rows of the table of segments; the first is used.
      norm_eps: epsilon of the layer norms.
      folder: the folder with its weights.
    """

    width: int
    depth: int
    num_heads: int
    hidden_units: int
    positions: int
    segments: int = 2
    norm_eps: float = 1e-12
    folder: str = ""

    @property
    def source(self) -> str:
        return self.folder

    @property
    def channels(self) -> int:
        return self.width

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch length"], mask: Mask) -> Encoded:
        """Context and pooled vector of each text.

        Raises:
          UserError: a text has more tokens than there are positions.
        """
        length = tokens.shape[1]
        if length > self.positions:
            raise UserError(
                f"the texts have {length} tokens, but the text encoder has {self.positions} positions: cut them"
            )
        draw = nn.initializers.normal(0.02)
        x = self.param("embedding", draw, (self.vocabulary, self.width))[tokens]
        x += self.param("position", draw, (self.positions, self.width))[:length]
        x += self.param("segment", draw, (self.segments, self.width))[0]
        wide = at_least_float32(self.dtype)
        x = nn.LayerNorm(epsilon=self.norm_eps, dtype=wide, use_fast_variance=False, name="norm")(x)
        blocks = nn.scan(
            BertBlock, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=self.depth
        )
        fields = {"num_heads": self.num_heads, "hidden_units": self.hidden_units, "norm_eps": self.norm_eps}
        x, _ = blocks(**fields, dtype=self.dtype, name="blocks")(x.astype(self.dtype), mask)
        context = jnp.where(mask[..., None], x.astype(wide), 0.0)
        return context, context.sum(axis=1) / mask.sum(axis=1, keepdims=True).astype(wide)


@TEXT_ENCODERS.register("bert")
def bert(*, folder: str, vocabulary: int = 0, dtype: DTypeLike = jnp.float32) -> Bert:
    """The encoder in a folder written by Hugging Face's `transformers`: config.json, model.safetensors, and beside them
    tokenizer.json, which is the tokenizer to use (`{"name": "file", "path": ...}`).

    Args:
      folder: the folder; the weights are not read here.
      vocabulary: number of tokens of the tokenizer, all of which the encoder must have.
      dtype: type of the computation.

    Raises:
      UserError: there is no such folder, it has another kind of network, or the tokenizer does not fit the encoder.
    """
    path = Path(folder).expanduser() / "config.json"
    config = read_json(path)
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, wanted in expected.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"{path}: {name} is {config[name]!r}, and the text encoder bert has {wanted!r}")
    fields: dict[str, Any] = {}
    for name, here in _SIZES.items():
        value = config.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{path}: {name} must be a number above 0, it is {value!r}")
        fields[here] = float(value) if here == "norm_eps" else int(value)
    if fields["width"] % fields["num_heads"]:
        raise UserError(f"{path}: {fields['width']} channels do not divide into {fields['num_heads']} heads")
    if vocabulary > fields["vocabulary"]:
        raise UserError(
            f"the tokenizer has {vocabulary:,} tokens and the text encoder of {folder} {fields['vocabulary']:,}: use "
            "the tokenizer.json beside it"
        )
    return Bert(**fields, folder=folder, dtype=dtype)
