"""How uncertain the loss is at each noise level, learned with the network.

Karras et al. 2024 (arXiv 2312.02696, EDM2), eq. 14, 15, after Kendall et al. 2018: a Gaussian likelihood whose variance
e^u depends on the noise level makes the loss

    (1)   E[ w mse e^{-u(t)} + u(t) ],

whose minimum over u is u = log E[w mse | t]; every noise level then pulls with the same strength. u is linear in 128
random Fourier features of log(sigma / alpha) / 4, whose frequencies and phases are fixed: 128 parameters, zero at
first.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedUncertainty:
    """u of (1), a function of the log-SNR."""

    features: int = 128

    @functools.cached_property
    def _waves(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(0)
        return 2 * np.pi * random.standard_normal(self.features), 2 * np.pi * random.uniform(size=self.features)

    def init(self) -> dict[str, Float[Array, " features"]]:
        """Parameters: u = 0 everywhere."""
        return {"weight": jnp.zeros((self.features,), jnp.float32)}

    def __call__(
        self, params: dict[str, Float[Array, " features"]], log_snr: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        frequencies, phases = (jnp.asarray(value, log_snr.dtype) for value in self._waves)
        level = jnp.clip(-log_snr / 8.0, -10.0, 10.0)  # finite also where the log-SNR is not
        waves = jnp.sqrt(2.0) * jnp.cos(level[:, None] * frequencies + phases)
        return jnp.sum(waves * params["weight"], axis=-1) / jnp.sqrt(self.features)
