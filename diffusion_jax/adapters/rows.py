"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): it trains new rows of a table of embeddings."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from diffusion_jax.adapters.adapter import ADAPTERS, Adapter
from diffusion_jax.adapters.forms import SCALE
from diffusion_jax.domains import SIZE, Bounds
from diffusion_jax.errors import UserError


@ADAPTERS.register("textual_inversion", example={"first": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextualInversion(Adapter):
    """Rows `first` to `first + rows - 1` of a table, which start with their present values.

    The word must be one that the tokenizer knows and that captions do not need otherwise, such as a rare one.

    Attributes:
      first: the first row, the number of the word's token; -1: the token of data.trigger.
      rows: vectors of the word.
    """

    name: str = "textual_inversion"
    targets: tuple[str, ...] = (r"conditioning/.*/(embedding|token)",)
    first: Annotated[int, Bounds(low=-1, high=2**24)] = -1
    rows: Annotated[int, SIZE] = 1

    def of_word(self, word: str, tokens: Sequence[int]) -> "TextualInversion":
        if self.first >= 0:
            return self
        if len(tokens) != 1 or self.rows != 1:
            why = f"adapter.rows={self.rows}" if len(tokens) == 1 else f"the tokenizer splits it into {len(tokens)}"
            raise UserError(
                f"data.trigger={word!r} must be one token with one vector, but {why}: take another word, or give the "
                "first token's number as adapter.first"
            )
        return dataclasses.replace(self, first=int(tokens[0]))

    def init_leaf(self, key: Key[Array, ""], path: str, leaf: Array) -> dict[str, Any]:
        if self.first < 0:
            raise UserError("textual_inversion needs the word to learn: give data.trigger, or adapter.first")
        end = self.first + self.rows
        if leaf.ndim != 2 or end > leaf.shape[0]:
            raise UserError(f"{path}, {list(leaf.shape)}, has no rows {self.first} to {end - 1}")
        return {"rows": leaf[self.first : end], "frozen_first": jnp.int32(self.first), SCALE: ()}
