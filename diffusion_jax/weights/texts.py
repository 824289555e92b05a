"""The weights of text encoders for conditioning, from their published folders."""

from pathlib import Path

import jax
from jaxtyping import PyTree

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders import Bert, Encoder, init_encoder
from diffusion_jax.weights.names import Entry, WeightMap, dense, norm, prefixed, same, separate_qkv, stacked
from diffusion_jax.weights.names import Path as TreePath
from diffusion_jax.weights.reading import read_state


def read_text_encoder(encoder: Encoder) -> PyTree:
    """The parameters of a text encoder, from the folder that describes it.

    Raises:
      UserError: there are no weights, or those of another network; the message names what differs.
    """
    state = {name.removeprefix("bert."): x for name, x in read_state(Path(encoder.source).expanduser()).items()}
    try:
        return bert_map(encoder).params(state, jax.eval_shape(lambda: init_encoder(encoder, jax.random.key(0))))
    except UserError as error:
        raise UserError(f"{encoder.source}: {error}") from error


def bert_map(encoder: Bert) -> WeightMap:
    """The names of `BertModel`; heads are left out."""

    def block(i: int) -> dict[TreePath, Entry]:
        there = f"encoder.layer.{i}"
        return {
            **prefixed("qkv", separate_qkv([f"{there}.attention.self.{name}" for name in ("query", "key", "value")])),
            **prefixed("attention_out", dense(f"{there}.attention.output.dense")),
            **prefixed("norm_1", norm(f"{there}.attention.output.LayerNorm")),
            **prefixed("mlp_in", dense(f"{there}.intermediate.dense")),
            **prefixed("mlp_out", dense(f"{there}.output.dense")),
            **prefixed("norm_2", norm(f"{there}.output.LayerNorm")),
        }

    entries = {
        ("embedding",): same("embeddings.word_embeddings.weight"),
        ("position",): same("embeddings.position_embeddings.weight"),
        ("segment",): same("embeddings.token_type_embeddings.weight"),
        **prefixed("norm", norm("embeddings.LayerNorm")),
        **stacked("blocks", map(block, range(encoder.depth))),
    }
    return WeightMap(entries, ignored=(r"pooler\..*", r".*position_ids", r"cls\..*"))
