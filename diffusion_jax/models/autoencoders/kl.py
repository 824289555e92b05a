"""The first stage whose latents are Gaussians (Kingma & Welling 2014; Rombach et al. 2022, arXiv:2112.10752).

    (mean, log variance) = encoder(x),    h = mean + exp(log variance / 2) noise

Its penalty is the divergence from a unit Gaussian, KL = sum (mean^2 + variance - 1 - log variance) / 2, divided by the
number of values of the data. Together with a mean of absolute errors it then has the weight that the paper gives it
together with their sum: 1e-6.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from diffusion_jax.models.autoencoders.autoencoder import Latents
from diffusion_jax.models.autoencoders.codec import CODECS, drawn
from diffusion_jax.models.autoencoders.learned import LearnedCodec, Reconstruction

_LEAST, _MOST = -30.0, 20.0  # bounds of the log variance


@CODECS.register("kl", example={"size": "small_f2", "channels": (8, 8), "data_channels": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class KL(LearnedCodec):
    """Gaussian latents; see `LearnedCodec` for the fields. Size f8 is Stable Diffusion's, with 83,653,863
    parameters."""

    @property
    def encoded_channels(self) -> int:
        return 2 * self.latent_channels

    def posterior(self, params: PyTree, x: Array) -> tuple[Latents, Latents]:
        mean, log_variance = self._moments(params, x)
        return self._scaled(params, mean), self._spread(params, jnp.exp(0.5 * log_variance))

    def autoencode(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Reconstruction:
        """See `LearnedCodec`; logs `kl` in nats per value of the data."""
        mean, log_variance = self._moments(params, x)
        h = drawn(mean, jnp.exp(0.5 * log_variance), keys)
        y, hidden = self._decoded(params, h)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
        penalty = jnp.sum(divergence, axis=(1, 2, 3)) / math.prod(x.shape[1:])
        return Reconstruction(x=y, hidden=hidden, penalty=penalty, observed={"kl": jnp.mean(penalty)})

    def _moments(self, params: PyTree, x: Array) -> tuple[Latents, Latents]:
        mean, log_variance = jnp.split(self._features(params, x), 2, axis=-1)
        return mean, jnp.clip(log_variance, _LEAST, _MOST)

    def _encoded(self, params: PyTree, x: Array, keys: Key[Array, " batch"] | None) -> Latents:
        mean, log_variance = self._moments(params, x)
        return drawn(mean, jnp.exp(0.5 * log_variance), keys)
