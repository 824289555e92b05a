"""The uncertainty of the loss at each noise level, learned together with the network.

Karras et al. 2024 (arXiv 2312.02696, EDM2), eq. 14, 15, after Kendall et al. 2018: a Gaussian likelihood whose variance
e^u depends on the noise level makes the loss

    (1)   E[ w mse e^{-u(t)} + u(t) ],

whose minimum over u is u = log E[w mse | t]; every noise level then has the same influence. u is linear in 128 random
Fourier features of log(sigma / alpha) / 4, whose frequencies and phases are fixed: 128 parameters.

In EDM2 these parameters are a layer like the others of its network (the authors' networks_edm2.py, `MPConv` without a
gain): a normal draw at first, divided by their norm where they are used (their eq. 47), so that |w| = 1 in

    (2)   u = w . features,   w = v / (|v| + 1e-4 sqrt(128)),

and rescaled to norm sqrt(128) after every optimizer step (their sec. 2.3). Without `normalized` they are a plain linear
layer, u = v . features / sqrt(128), zero at first.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Params = dict[str, Float[Array, " features"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedUncertainty:
    """u of (1), a function of the log-SNR; with `normalized`, by the weights (2)."""

    features: int = 128
    normalized: bool = True

    @functools.cached_property
    def _waves(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(0)
        return 2 * np.pi * random.standard_normal(self.features), 2 * np.pi * random.uniform(size=self.features)

    def init(self, key: Key[Array, ""]) -> Params:
        """Parameters: a normal draw, or u = 0 everywhere."""
        if self.normalized:
            return {"weight": jax.random.normal(key, (self.features,), jnp.float32)}
        return {"weight": jnp.zeros((self.features,), jnp.float32)}

    def constrain(self, params: Params) -> Params:
        """The weights rescaled to norm sqrt(features), if they are normalised."""
        if not self.normalized:
            return params
        return {"weight": jnp.sqrt(self.features) * self._direction(params["weight"])}

    def _direction(self, weight: Float[Array, " features"]) -> Float[Array, " features"]:
        norm = jnp.sqrt(jnp.maximum(jnp.sum(weight**2), 1e-30))  # the square root has no derivative at zero
        return weight / (norm + 1e-4 * jnp.sqrt(self.features))

    def __call__(self, params: Params, log_snr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        frequencies, phases = (jnp.asarray(value, log_snr.dtype) for value in self._waves)
        level = jnp.clip(-log_snr / 8.0, -10.0, 10.0)  # finite even where the log-SNR is not
        waves = jnp.sqrt(2.0) * jnp.cos(level[:, None] * frequencies + phases)
        weight = params["weight"]
        scaled = self._direction(weight) if self.normalized else weight / jnp.sqrt(self.features)
        return jnp.sum(waves * scaled, axis=-1)
