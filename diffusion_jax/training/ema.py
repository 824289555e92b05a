"""Exponential moving averages of the parameters, one or several side by side.

A decay is given per step (DDPM: 0.9999) or as a half-life in images (EDM, Karras et al. 2022, sec. B), from which

    decay = 0.5 ^ (batch_size / half_life),    half_life <= ramp_up_ratio * images_seen                         (1)

so that the average forgets the random initial parameters early in training and means the same for any batch size.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
        return tuple(f"decay_{d:g}" for d in self.decays) + tuple(f"half_life_{h:g}" for h in self.half_lives)

    def decay_at(self, step: int | Int[Array, ""], batch_size: int) -> dict[str, Float[Array, ""]]:
        """The decay of every average at optimizer step `step` (0 is the first)."""
        decays = {f"decay_{d:g}": jnp.float32(d) for d in self.decays}
        for half_life in self.half_lives:
            images = jnp.float32(half_life)
            if self.ramp_up_ratio is not None:
                seen = jnp.asarray(step, jnp.float32) * batch_size
                images = jnp.minimum(images, jnp.maximum(seen * self.ramp_up_ratio, 1e-8))
            decays[f"half_life_{half_life:g}"] = 0.5 ** (batch_size / images)
        return decays

    def init(self, params: Any) -> dict[str, Any]:
        """Every average starts at the initial parameters, in float32."""
        return {name: jax.tree.map(lambda p: jnp.array(p, jnp.float32), params) for name in self.names}

    def update(self, averages: dict[str, Any], params: Any, step: Int[Array, ""], batch_size: int) -> dict[str, Any]:
        """The averages after one more step: ema + (1 - decay) (params - ema)."""
        decays = self.decay_at(step, batch_size)
        return {
            name: jax.tree.map(lambda a, p, d=decays[name]: a + (1 - d) * (p.astype(a.dtype) - a), average, params)
            for name, average in averages.items()
        }
