"""Exponential moving averages of the parameters, one or several side by side.

A decay is given per step (DDPM: 0.9999) or as a half-life in images (EDM, Karras et al. 2022, sec. B), from which

    decay = 0.5 ^ (batch_size / half_life),    half_life <= ramp_up_ratio * images_seen                         (1)

so that the average forgets the random initial parameters early in training and means the same for any batch size.

The third kind has a profile that grows as a power of training time (Karras et al. 2024, EDM2, sec. 3.1 and app. C):
at time t the parameters of time s <= t have the density

    p(s; gamma, t) = (gamma + 1) s^gamma / t^(gamma + 1),     decay(n) = (1 - 1/n)^(gamma + 1),                 (2)

the decay being that of step n = 1, 2 ...

It is named by its width, the standard deviation of p relative to t (EDM2 keeps 0.05 and 0.10). Averages stored at
several steps can be combined linearly into the average of any other width, after training (`post_hoc_coefficients`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError


def power_from_width(width: float) -> float:
    """The exponent gamma of the power-function profile with relative standard deviation `width` (EDM2, algorithm 2).

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / width^2; the uniform average (gamma = 0) has
    the width 12^(-1/2).
    """
    if not 0 < width < 12**-0.5:
        raise UserError(f"the width of a power-function average lies between 0 and 12^(-1/2) = 0.2887, got {width}")
    squared = width**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - squared, 12.0 - squared]).real.max())


def _overlap(gamma: np.ndarray, t: np.ndarray, other_gamma: np.ndarray, other_t: np.ndarray) -> np.ndarray:
    """The integral of the product of two profiles (EDM2, equation 117), in powers that cannot overflow."""
    later = np.maximum(t, other_t)
    ratio = np.where(t < other_t, (t / later) ** other_gamma, (other_t / later) ** gamma)
    return (gamma + 1) * (other_gamma + 1) * ratio / ((gamma + other_gamma + 1) * later)


def post_hoc_coefficients(
    widths: Sequence[float], steps: Sequence[float], *, width: float, step: float
) -> Float[np.ndarray, "stored"]:
    """The coefficients with which stored averages add up to the average of another width, in float64 (EDM2, algorithm
    3).

    They are the least-squares fit of the wanted profile by the stored ones among coefficients that sum to 1. Without
    that condition, which the paper leaves out, a few stored averages give parameters that are too large or too small by
    a few per cent.

    Args:
      widths: widths of the stored averages.
      steps: optimizer steps done when each was stored.
      width: the wanted width.
      step: the step for which it is wanted; averages stored later are not used.

    Raises:
      UserError: widths out of range, or nothing stored.
    """
    if len(widths) != len(steps) or not widths:
        raise UserError(f"post-hoc averages need a width for each stored step, got {len(widths)} and {len(steps)}")
    gammas, times = np.array([power_from_width(w) for w in widths]), np.asarray(steps, np.float64)
    gram = _overlap(gammas[:, None], times[:, None], gammas[None], times[None])
    wanted = _overlap(gammas, times, np.float64(power_from_width(width)), np.float64(step))
    scale = np.sqrt(np.diagonal(gram))  # profiles of early steps are large: equal norms condition the system
    # Stationary point of |profile - wanted|^2 / 2 + multiplier (sum - 1), in units of scale.
    system = np.block([[gram / np.outer(scale, scale), 1 / scale[:, None]], [1 / scale, np.zeros(1)]])
    return np.linalg.lstsq(system, np.append(wanted / scale, 1.0), rcond=1e-14)[0][:-1] / scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The averages to keep.

    Attributes:
      decays: decays per optimizer step, each in (0, 1).
      half_lives: half-lives in images.
      widths: relative standard deviations of power-function averages (equation 2), each in (0, 0.2887).
      ramp_up_ratio: bound on a half-life relative to the images seen so far (equation 1); None for no bound.
    """

    decays: tuple[float, ...] = ()
    half_lives: tuple[int, ...] = ()
    widths: tuple[float, ...] = ()
    ramp_up_ratio: float | None = 0.05

    @property
    def names(self) -> tuple[str, ...]:
        """One name per average; the first is the one that is evaluated by default."""
        return (
            *(f"decay_{decay}" for decay in self.decays),
            *(f"half_life_{half_life}" for half_life in self.half_lives),
            *(f"width_{width}" for width in self.widths),
        )

    def __post_init__(self):
        if not all(0 < decay < 1 for decay in self.decays) or not all(half_life > 0 for half_life in self.half_lives):
            raise UserError(f"ema needs decays in (0, 1) and half_lives > 0, got {self.decays}, {self.half_lives}")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"ema gives two averages the same name: {', '.join(self.names)}")
        for width in self.widths:
            power_from_width(width)

    def gains_at(self, step: int | Int[Array, ""], batch_size: int) -> dict[str, Float[Array, ""]]:
        """1 - decay of every average at optimizer step `step` (0 is the first), exact also for decays close to 1."""
        gains = [jnp.float32(1 - decay) for decay in self.decays]
        for half_life in self.half_lives:
            images = jnp.float32(half_life)
            if self.ramp_up_ratio is not None:
                seen = jnp.asarray(step, jnp.float32) * batch_size
                images = jnp.minimum(images, jnp.maximum(seen * self.ramp_up_ratio, 1e-8))
            gains.append(-jnp.expm1(math.log(0.5) * batch_size / images))
        n = jnp.asarray(step, jnp.float32) + 1
        for width in self.widths:  # the first step forgets the initial parameters completely
            gains.append(-jnp.expm1((power_from_width(width) + 1) * jnp.log1p(-1 / n)))
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
