"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): new rows of a table of embeddings, and nothing else."""

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from diffusion_jax.adapters.adapter import ADAPTERS, Adapter
from diffusion_jax.adapters.forms import SCALE
from diffusion_jax.domains import SIZE, Bounds
from diffusion_jax.errors import UserError


@ADAPTERS.register("textual_inversion")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextualInversion(Adapter):
    """Rows `first` to `first + rows - 1` of a table; they begin as what is there.

    Attributes:
      first: the first row, the token that the tokenizer gives the new word; -1: the last rows.
      rows: vectors of the word.
    """

    name: str = "textual_inversion"
    targets: tuple[str, ...] = (r".*/embedding",)
    first: Annotated[int, Bounds(low=-1, high=2**24)] = -1
    rows: Annotated[int, SIZE] = 1

    def init_leaf(self, key: Key[Array, ""], path: str, leaf: Array) -> dict[str, Any]:
        first = self.first if self.first >= 0 else leaf.shape[0] - self.rows
        if leaf.ndim != 2 or first < 0 or first + self.rows > leaf.shape[0]:
            raise UserError(f"{path}, {list(leaf.shape)}, has no rows {first} to {first + self.rows - 1}")
        return {"rows": leaf[first : first + self.rows], "frozen_first": jnp.int32(first), SCALE: ()}
