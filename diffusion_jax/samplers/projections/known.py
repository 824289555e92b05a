"""Known facts about the data to draw: a region of it, or a linear measurement. Both are y = A x0 + noise."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError

_ITERATIONS = 64  # most iterations of conjugate gradients, which stop earlier where they have converged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Data that is known outside a mask: A removes what the mask covers, and there is no noise.

    Attributes:
      mask: [batch or 1, ...], which broadcasts with the data; 1 where data is to be drawn, 0 where it is known.
      source: the data, [batch, ...]; the part under the mask is not read.
    """

    mask: Float[Array, "#batch ..."]
    source: Float[Array, "batch ..."]
    noise_std: float = 0.0

    @property
    def measured(self) -> Float[Array, "batch ..."]:
        """y."""
        return self.measure(self.source)

    def measure(self, x0: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """A x0."""
        return jnp.where(self.mask > 0, jnp.zeros_like(x0), x0)

    def solve(self, error: Float[Array, "batch ..."], variance: Float[Array, ""]) -> Float[Array, "batch ..."]:
        """(variance A A^T + noise_std^2)^-1 error, for an error that is y - A x0."""
        return error / (variance + self.noise_std**2)

    def put_back(self, x: Float[Array, "batch ..."], known: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        """x under the mask, the known data outside."""
        return jnp.where(self.mask > 0, x, known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A linear measurement y = A x0 + noise_std noise.

    Attributes:
      measure: A, which takes a batch [batch, ...] to [batch, ...], every example by itself.
      measured: y.
      shape: shape of one example of the data.
      noise_std: standard deviation of the noise of the measurement.

    Raises:
      UserError: a negative noise_std.
    """

    measure: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]]
    measured: Float[Array, "batch ..."]
    shape: tuple[int, ...]
    noise_std: float = 0.0

    def __post_init__(self):
        if self.noise_std < 0:
            raise UserError(f"the noise of a measurement has noise_std of at least 0, not {self.noise_std}")

    def solve(self, error: Float[Array, "batch ..."], variance: Float[Array, ""]) -> Float[Array, "batch ..."]:
        """(variance A A^T + noise_std^2)^-1 error, by conjugate gradients of every example."""
        example = jax.ShapeDtypeStruct((1, *self.shape), error.dtype)
        transposed = jax.linear_transpose(self.measure, example)

        def covariance(v: Array) -> Array:
            (back,) = transposed(v[None])
            return (variance * self.measure(back) + self.noise_std**2 * v[None])[0]

        def solved(b: Array) -> Array:
            return jax.scipy.sparse.linalg.cg(covariance, b, tol=1e-6, maxiter=_ITERATIONS)[0]

        return jax.vmap(solved)(error)


Known = Region | Measurement
