"""Adapters of kernels: LoRA and its variants. Initially each changes nothing."""

import dataclasses
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from diffusion_jax.adapters.adapter import ADAPTERS, PARTS, Adapter
from diffusion_jax.adapters.forms import SCALE, as_matrices, lengths, num_layers_axes
from diffusion_jax.domains import NOT_NEGATIVE, SHARE_BELOW_1, SIZE
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfKernels(Adapter):
    """Base of the adapters of kernels.

    Attributes:
      rank: columns of A and rows of B.
      alpha: s = alpha / rank; 0 stands for the rank, so that s = 1.
      rank_stabilized: s = alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732).
      convolutions: whether the patterns may also match kernels of convolutions.
    """

    rank: Annotated[int, SIZE] = 4
    alpha: Annotated[float, NOT_NEGATIVE] = 0.0
    rank_stabilized: bool = False
    convolutions: bool = False

    @property
    def scale(self) -> float:
        alpha = self.alpha or float(self.rank)
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def init_leaf(self, key: Key[Array, ""], path: str, leaf: Array) -> dict[str, Any]:
        layers, axes = num_layers_axes(leaf.shape), leaf.ndim
        if not path.endswith("/kernel") or axes < 2 or axes > 5:
            raise UserError(f"{path}, {list(leaf.shape)}, is not a kernel of a dense layer or a convolution")
        if axes - layers == 4 and not self.convolutions:
            raise UserError(f"{path} is a convolution: set convolutions=True, or leave it out of the targets")
        shape = as_matrices(leaf).shape
        layer = path.split("/")[-2]
        parts = next((count for end, count in PARTS.items() if layer.endswith(end)), 1)
        own = self.factors(key, (*shape[:layers], parts), shape[-2], shape[-1] // parts, leaf)
        return {**own, SCALE: (*shape[:layers], parts)}

    def factors(
        self, key: Key[Array, ""], leading: tuple[int, ...], inputs: int, outputs: int, leaf: Array
    ) -> dict[str, Array]:
        """The leaves for kernels [inputs, outputs] with these leading axes."""
        raise NotImplementedError


@ADAPTERS.register("lora", example={"rank": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(OfKernels):
    """LoRA: A has the uniform distribution of a new dense layer, B is zero; with `magnitude`, DoRA.

    Attributes:
      magnitude: whether the norm of every output is also learned.
      dropout: share of the inputs of A that is zeroed in training.
    """

    name: str = "lora"
    magnitude: bool = False
    dropout: Annotated[float, SHARE_BELOW_1] = 0.0

    def __post_init__(self):
        if self.dropout and (self.magnitude or self.convolutions):
            stated = "magnitude" if self.magnitude else "convolutions"
            raise UserError(f"lora: dropout needs dense layers without a magnitude: set dropout=0 or {stated}=False")

    @property
    def share_dropped(self) -> float:
        return self.dropout

    def factors(self, key, leading, inputs, outputs, leaf):
        own = {
            "down": _uniform(key, (*leading, inputs, self.rank), inputs),
            "up": jnp.zeros((*leading, self.rank, outputs), jnp.float32),
        }
        return {**own, "magnitude": lengths(leaf.astype(jnp.float32))} if self.magnitude else own


@ADAPTERS.register("loha", example={"rank": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Loha(OfKernels):
    """LoHa: the elementwise product of two low-rank terms, one of which starts at zero."""

    name: str = "loha"

    def factors(self, key, leading, inputs, outputs, leaf):
        keys = jax.random.split(key, 3)

        def normal(key, shape, std):
            return std * jax.random.normal(key, (*leading, *shape), jnp.float32)

        return {
            "left_down": normal(keys[0], (inputs, self.rank), 1.0),
            "left_up": normal(keys[1], (self.rank, outputs), 0.1),
            "right_down": normal(keys[2], (inputs, self.rank), 1.0),
            "right_up": jnp.zeros((*leading, self.rank, outputs), jnp.float32),
        }


@ADAPTERS.register("lokr", example={"rank": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lokr(OfKernels):
    """LoKr: the Kronecker product of a small matrix with a larger one of low rank, which starts at zero.

    The rows and columns of the small matrix are the largest divisors of inputs and outputs up to `factor`.

    Attributes:
      factor: the most rows and columns of the small matrix.
    """

    name: str = "lokr"
    factor: Annotated[int, SIZE] = 8

    def factors(self, key, leading, inputs, outputs, leaf):
        rows, columns = (_divisor(n, self.factor) for n in (inputs, outputs))
        first, second = jax.random.split(key)
        return {
            "small": _uniform(first, (*leading, rows, columns), rows),
            "large_down": _uniform(second, (*leading, inputs // rows, self.rank), inputs // rows),
            "large_up": jnp.zeros((*leading, self.rank, outputs // columns), jnp.float32),
        }


def _divisor(number: int, most: int) -> int:
    return max(n for n in range(1, min(number, most) + 1) if number % n == 0)


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], inputs: int) -> Array:
    limit = 1.0 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)
