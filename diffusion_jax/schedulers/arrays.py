"""Formulas written once for both the host, in float64, and the device, in the run's precision.

Time grids and constants are computed once, on the host, with numpy in float64; a training step computes the same
formula on traced arrays. A formula written with `array_module(x)` serves both.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def array_module(x: Any) -> ModuleType:
    """`jax.numpy` for jax arrays and tracers, `numpy` for everything else."""
    return jnp if isinstance(x, jax.Array) else np


def as_float(x: Any) -> Array:
    """A jax array stays one (integers become floats); anything else becomes numpy float64."""
    if isinstance(x, jax.Array):
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(compute_dtype())
    return np.asarray(x, np.float64)


def compute_dtype() -> jnp.dtype:
    """The precision of coefficients, losses and sampler states: float32, or float64 under `jax.enable_x64`."""
    return jnp.result_type(float)


def as_compute(x: Any) -> jax.Array:
    """`x` as a jax array in `compute_dtype()`, whatever the precision of the network."""
    return jnp.asarray(x, compute_dtype())


def like_data(coefficient: Array, data: Array) -> Array:
    """A coefficient of shape [] or [batch] with trailing axes of size 1, so that it multiplies data [batch, ...]."""
    return (
        coefficient.reshape(coefficient.shape + (1,) * (data.ndim - coefficient.ndim))
        if coefficient.ndim
        else coefficient
    )


def log1m_exp(x: Array) -> Array:
    """log(1 - exp(x)) for x <= 0 without cancellation; -inf at 0."""
    xp = array_module(x)
    return xp.log(-xp.expm1(x))
