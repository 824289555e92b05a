"""Bits per dimension that carry their kind, so that numbers of different kinds are never mixed up.

    kind          what it is                                                            bits per dimension
    density       -log2 of a density of data in [-1, 1], continuous                     -log2 p / D
    uniform       a bound on the probability of data of `bins` levels, from the         -log2 p / D + log2(bins / 2)
                  density of data dequantised by uniform noise (Theis et al. 2015)
    discretised   a bound on the probability of the levels themselves, from a decoder   -log2 P / D
                  (DDPM, iDDPM, VDM)

A level is 2 / bins wide in [-1, 1], which is where log2(bins / 2) comes from: 7 bits for 256 levels.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.registry import unknown_name

Kind = Literal["density", "uniform", "discretised"]
KINDS = ("density", "uniform", "discretised")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["kind", "bins"])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Bits per dimension of every example, [batch], and their kind."""

    bits: Float[Array, " batch"]
    kind: Kind
    bins: int | None


def bits_per_dim(
    log_likelihood: Float[Array, " batch"], dimensions: int, *, kind: Kind, bins: int | None = None
) -> Likelihood:
    """Convert log-likelihoods in nats per example (the table above).

    Args:
      log_likelihood: one for every example; for "uniform" that of the dequantised data in [-1, 1].
      dimensions: D, numbers per example.
      kind: "density", "uniform" or "discretised".
      bins: levels of the data; required for the last two kinds, and refused for "density".

    Raises:
      UserError: an unknown kind, or `bins` missing or meaningless.
    """
    if kind not in KINDS:
        raise UserError(unknown_name("kind of likelihood", kind, list(KINDS)))
    if (bins is None) != (kind == "density"):
        raise UserError(
            f"a likelihood of kind {kind!r} "
            + ("has no bins: leave them out" if kind == "density" else "needs the number of levels of the data: bins")
        )
    bits = -log_likelihood / (dimensions * math.log(2.0))
    if kind == "uniform":
        bits = bits + math.log2(bins / 2.0)
    return Likelihood(bits=bits, kind=kind, bins=bins)
