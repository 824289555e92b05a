"""How consistency training refines its discretisation over time: pure functions of the optimizer step k.

    CT    N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1,     mu(k) = exp(s0 log mu0 / N(k))
    iCT   N(k) = min(s0 2^floor(k / K'), s1) + 1,    K' = floor(K / (log2(s1 / s0) + 1))
    ECT   r / t = 1 - q^{-a} (1 + 8 sigmoid(-level)),   a = 1 + floor(k / doubling)

Song et al. 2023 (arXiv 2303.01469, app. C), Song & Dhariwal 2023 (arXiv 2310.14189, eq. 13), Geng et al. 2024 (arXiv
2406.14548, eq. 16). K is the length of training, N the number of noise levels, mu the decay of the target.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discretisation:
    """N(k) of CT ("sqrt"), iCT ("exponential"), or constant at `first` ("constant"; CD uses 18)."""

    rule: Literal["sqrt", "exponential", "constant"] = "exponential"
    first: int = 10
    last: int = 1280
    total_steps: int = 400_000

    def __post_init__(self):
        if self.rule not in ("sqrt", "exponential", "constant"):
            raise UserError(f"a discretisation rule is 'sqrt', 'exponential' or 'constant', got {self.rule!r}")
        if not 2 <= self.first <= self.last or self.total_steps < 1:
            raise UserError(f"a discretisation needs 2 <= first <= last and total_steps >= 1, got {self}")

    @property
    def stage_length(self) -> int:
        """K' of iCT."""
        return max(1, math.floor(self.total_steps / (math.log2(self.last // self.first) + 1)))

    def __call__(self, step: Int[Array, ""] | int) -> Int[Array, ""]:
        """N(k)."""
        step = jnp.asarray(step)
        if self.rule == "constant":
            return jnp.int32(self.first)
        if self.rule == "exponential":
            stages = jnp.minimum(step // self.stage_length, 30)
            return (jnp.minimum(self.first * 2**stages, self.last) + 1).astype(jnp.int32)
        share = jnp.minimum(step / self.total_steps, 1.0)
        root = jnp.sqrt(share * ((self.last + 1) ** 2 - self.first**2) + self.first**2)
        return (jnp.ceil(root - 1.0) + 1).astype(jnp.int32)

    @property
    def most(self) -> int:
        """The largest N."""
        return {"constant": self.first, "exponential": self.last + 1, "sqrt": self.last + 1}[self.rule]

    def target_decay(self, step: Int[Array, ""] | int, initial: float) -> Float[Array, ""]:
        """mu(k) of CT, which is `initial` for N = first."""
        return jnp.exp(self.first * math.log(initial) / self(step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasyCurriculum:
    """r / t of ECT; `doubling` 0 keeps a = 1, for which the paper takes q = 256."""

    q: float = 2.0
    doubling: int = 25_000
    k: float = 8.0
    b: float = 1.0

    def __post_init__(self):
        if self.q <= 1 or self.doubling < 0:
            raise UserError(f"ECT's curriculum needs q > 1 and doubling >= 0, got {self.q} and {self.doubling}")

    def ratio(self, step: Int[Array, ""] | int, level: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """r / t in [0, 1), for noise levels t."""
        stage = 1 + (jnp.asarray(step) // self.doubling if self.doubling else 0)
        adjust = 1.0 + self.k * jax.nn.sigmoid(-self.b * level)
        return jnp.clip(1.0 - adjust * self.q ** (-jnp.asarray(stage, level.dtype)), 0.0, 1.0)
