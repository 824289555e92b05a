"""How samplers call a trained denoiser: unchanged, or only in the way in which the loss trains it."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.schedulers import Denoiser, Prediction
from diffusion_jax.schedulers.arrays import as_compute, like_data

_CHAIN = 1000.0
_SIGMA_DATA = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """The denoiser, unchanged."""

    def __call__(self, denoise_fn: Denoiser) -> Denoiser:
        """The denoiser for samplers."""
        return denoise_fn


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskingSkipped(Asking):
    """A latent consistency function: x0 is a mixture of the input and of the network's x0 (`objectives.skipping`, (2)).

    Attributes:
      scaling: how fast the function leaves the identity with t.
    """

    scaling: float = 10.0

    def scalings(self, t: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """c_skip and c_out of (2)."""
        s = self.scaling * jnp.maximum(_CHAIN * as_compute(t) - 1.0, 0.0)
        size = s**2 + _SIGMA_DATA**2
        return _SIGMA_DATA**2 / size, s / jnp.sqrt(size)

    def __call__(self, denoise_fn: Denoiser) -> Denoiser:
        """f, as the x0 of a prediction whose noise is the network's."""

        def denoise(xt: Array, t: Array, *s: Array) -> Prediction:
            prediction = denoise_fn(xt, t, *s)
            skip, out = (like_data(scale, xt) for scale in self.scalings(t))
            return dataclasses.replace(prediction, x0=skip * xt + out * prediction.x0)

        return denoise


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskingInSteps(Asking):
    """A flow map, called with length 0 for steps of at most 1 / M, because shorter lengths are not trained.

    Attributes:
      steps: M; the shortest trained jump is 1 / M long.
    """

    steps: int

    def __call__(self, denoise_fn: Denoiser) -> Denoiser:
        least = (1.0 + 1e-3) / self.steps  # times are rounded

        def denoise(xt: Array, t: Array, *s: Array) -> Prediction:
            return denoise_fn(xt, t, *(jnp.where(t - end <= least, t, end) for end in s))

        return denoise
