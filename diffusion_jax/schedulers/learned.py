"""A noise schedule that is learned: gamma(t) = -log_snr(t) is a monotone network.

Kingma et al. 2021 (arXiv 2107.00630), sec. 4 and app. H. With all weights positive,

    (1)   gamma~(t) = w1 t + b1 + w3 . (2 sigmoid(w2 (2 t - 1) + b2) - 1) / features,

is increasing in t. Its ends are learned too; with `fixed_ends` they are set to given values:

    (2)   gamma(t) = gamma_min + (gamma_max - gamma_min) (gamma~(t) - gamma~(0)) / (gamma~(1) - gamma~(0)).

1,024 features make 3,074 parameters. `MonotoneGamma` is the description; `bind(params)` makes a `NoiseSchedule` with
these parameters, through which gradients flow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers.arrays import Array, array_module, as_float
from diffusion_jax.schedulers.continuous import ByLogSNR

_BISECTIONS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonotoneGamma:
    """Eq. (1), with gamma~(0) = gamma_min and gamma~(1) = gamma_max at initialisation; (2) with `fixed_ends`."""

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    features: int = 1024
    fixed_ends: bool = False

    def __post_init__(self):
        if not self.gamma_min < self.gamma_max or self.features < 1:
            raise UserError(f"a learned gamma needs gamma_min < gamma_max and features >= 1, got {self}")

    def init(self, key: Key[Array, ""]) -> dict[str, Array]:
        """Parameters, float32: w1, b1 [], w2, b2, w3 [features]. Only the absolute values of the weights are used."""
        first, second = jax.random.split(key)
        params = {
            "w1": jnp.float32(self.gamma_max - self.gamma_min),
            "b1": jnp.float32(self.gamma_min),
            "w2": jax.random.normal(first, (self.features,), jnp.float32),
            "b2": jnp.zeros((self.features,), jnp.float32),
            "w3": jax.random.normal(second, (self.features,), jnp.float32),
        }
        # The last term is odd about t = 1/2, so it moves both ends apart equally; w1 and b1 compensate for it.
        surplus = self._network(params, jnp.float32(1.0)) - self.gamma_max
        return {**params, "w1": params["w1"] - 2 * surplus, "b1": params["b1"] + surplus}

    def bind(self, params: Mapping[str, Array]) -> "LearnedSchedule":
        """The schedule with these parameters."""
        return LearnedSchedule(rule=self, params=params)

    def _network(self, params: Mapping[str, Array], t: Array) -> Array:
        xp = array_module(t)
        if xp is np:
            params = {name: np.asarray(value, np.float64) for name, value in params.items()}
        w1, w2, w3 = (xp.abs(params[name]) for name in ("w1", "w2", "w3"))
        # 2 sigmoid(y) - 1 = tanh(y / 2)
        features = xp.tanh(0.5 * ((2.0 * t - 1.0)[..., None] * w2 + params["b2"]))
        return w1 * t + params["b1"] + xp.sum(features * w3, axis=-1) / self.features

    def gamma(self, params: Mapping[str, Array], t: Array) -> Array:
        """gamma at times t, of any shape; numpy in, numpy float64 out."""
        t = as_float(t)
        found = self._network(params, t)
        if not self.fixed_ends:
            return found
        xp = array_module(t)
        first, last = (self._network(params, xp.full_like(t, end)) for end in (0.0, 1.0))
        return self.gamma_min + (self.gamma_max - self.gamma_min) * (found - first) / (last - first)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LearnedSchedule(ByLogSNR):
    """The variance-preserving schedule of `MonotoneGamma` with given parameters."""

    rule: MonotoneGamma
    params: Any

    def log_snr(self, t: Array) -> Array:
        return -self.rule.gamma(self.params, t)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        """Solve by bisection; log-SNRs beyond the ends give the ends."""
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        low, high = xp.zeros_like(log_snr), xp.ones_like(log_snr)

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            too_clean = self.log_snr(middle) > log_snr
            return xp.where(too_clean, middle, low), xp.where(too_clean, high, middle)

        if xp is jnp:
            low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
        else:
            for i in range(_BISECTIONS):
                low, high = halve(i, (low, high))
        return 0.5 * (low + high)
