"""Exponential moving averages of the parameters, one or several side by side.

A decay is given per step (DDPM: 0.9999) or as a half-life in images (EDM, Karras et al. 2022, sec. B), from which

    decay = 0.5 ^ (batch_size / half_life),    half_life <= ramp_up_ratio * images_seen                         (1)

so that the average forgets the random initial parameters early in training and means the same for any batch size.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Which averages to keep.

    Attributes:
      decays: decays per optimizer step, each in (0, 1).
      half_lives: half-lives in images.
      ramp_up_ratio: bound of the half-life relative to the images seen so far (equation 1); None for no bound.
    """

    decays: tuple[float, ...] = ()
    half_lives: tuple[int, ...] = ()
    ramp_up_ratio: float | None = 0.05

    @property
    def names(self) -> tuple[str, ...]:
        """One name per average; the first is the one that is evaluated by default."""
        return tuple(f"decay_{decay}" for decay in self.decays) + tuple(f"half_life_{h}" for h in self.half_lives)

    def __post_init__(self):
        if not all(0 < decay < 1 for decay in self.decays) or not all(half_life > 0 for half_life in self.half_lives):
            raise UserError(f"ema needs decays in (0, 1) and half_lives > 0, got {self.decays}, {self.half_lives}")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"ema names two averages alike: {', '.join(self.names)}")

    def gains_at(self, step: int | Int[Array, ""], batch_size: int) -> dict[str, Float[Array, ""]]:
        """1 - decay of every average at optimizer step `step` (0 is the first), exact also for decays close to 1."""
        gains = [jnp.float32(1 - decay) for decay in self.decays]
        for half_life in self.half_lives:
            images = jnp.float32(half_life)
            if self.ramp_up_ratio is not None:
                seen = jnp.asarray(step, jnp.float32) * batch_size
                images = jnp.minimum(images, jnp.maximum(seen * self.ramp_up_ratio, 1e-8))
            gains.append(-jnp.expm1(math.log(0.5) * batch_size / images))
        return dict(zip(self.names, gains, strict=True))

    def init(self, params: Any) -> dict[str, Any]:
        """Every average starts at the initial parameters, in float32."""
        return {name: jax.tree.map(lambda p: jnp.array(p, jnp.float32), params) for name in self.names}

    def update(self, averages: dict[str, Any], params: Any, step: Int[Array, ""], batch_size: int) -> dict[str, Any]:
        """The averages after one more step: ema + (1 - decay) (params - ema)."""
        gains = self.gains_at(step, batch_size)
        return {
            name: jax.tree.map(lambda a, p, gain=gains[name]: a + gain * (p.astype(a.dtype) - a), average, params)
            for name, average in averages.items()
        }
