"""More tables of betas, and tables made from others: zero terminal SNR, respacing.

name             betas                                                                   paper
scaled_linear    linear in sqrt(beta)                                                    Rombach et al. 2022 (LDM)
sigmoid_betas    beta_start + (beta_end - beta_start) sigmoid(-6 ... 6)                  Xu et al. 2022 (GeoDiff)
beta_table       given                                                                   any
respaced         of the kept steps, chosen so that alpha there is unchanged              Nichol & Dhariwal 2021, eq. 19
zero_terminal_snr of another table, sqrt(abar) shifted and scaled to end at zero         Lin et al. 2023, alg. 1
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers.arrays import Array, array_module, as_float
from diffusion_jax.schedulers.schedule import SCHEDULES, NoiseSchedule
from diffusion_jax.schedulers.variance_preserving import BetaRange, TableSchedule


@SCHEDULES.register("scaled_linear")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledLinear(BetaRange):
    """Square roots of betas equally spaced; the defaults are Stable Diffusion's, LDM itself ends at 0.0195 or
    0.0155."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def betas(self) -> np.ndarray:
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps) ** 2


@SCHEDULES.register("sigmoid_betas")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidBetas(BetaRange):
    """Betas on a sigmoid between beta_start and beta_end."""

    def betas(self) -> np.ndarray:
        return self.beta_start + (self.beta_end - self.beta_start) / (1 + np.exp(-np.linspace(-6, 6, self.num_steps)))


@SCHEDULES.register("beta_table", example={"table": tuple(np.linspace(1e-3, 0.2, 100))})
@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaTable(TableSchedule):
    """The betas given in `table`; `num_steps` is its length."""

    num_steps: int = 0
    table: tuple[float, ...] = ()

    def __post_init__(self):
        if self.num_steps not in (0, len(self.table)):
            raise UserError(f"beta_table has {len(self.table)} betas, but num_steps is {self.num_steps}: leave it out")
        object.__setattr__(self, "num_steps", len(self.table))
        super().__post_init__()

    def betas(self) -> np.ndarray:
        return np.asarray(self.table, np.float64)


def _table(spec: str | Mapping[str, Any] | NoiseSchedule, user: str) -> TableSchedule:
    table = SCHEDULES.build(spec) if isinstance(spec, str) or hasattr(spec, "keys") else spec
    if not isinstance(table, TableSchedule):
        raise UserError(f"{user} needs a table of betas as base, such as ddpm_linear, got {type(table).__name__}")
    return table


def space_timesteps(num_steps: int, sections: str | int | Sequence[int]) -> np.ndarray:
    """Steps of 0 ... num_steps - 1 to keep (Nichol & Dhariwal 2021, as in the paper's code).

    `sections` "250" spreads 250 steps from the first to the last; "10,15,20" divides the table into three equal parts
    with 10, 15 and 20 steps; "ddim50" takes the whole stride that gives exactly 50 steps, from step 0 (as DDIM does).

    Raises:
      UserError: there is no such spacing.
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        wanted = int(sections.removeprefix("ddim"))
        for stride in range(1, num_steps):
            if len(range(0, num_steps, stride)) == wanted:
                return np.arange(0, num_steps, stride)
        raise UserError(f"no whole stride divides {num_steps} steps into {wanted}; use {wanted!r} without 'ddim'")
    if isinstance(sections, str):
        sections = [int(part) for part in sections.split(",")]
    counts = [sections] if isinstance(sections, int) else list(sections)
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = num_steps // len(counts) + (1 if index < num_steps % len(counts) else 0)
        if not 1 <= count <= size:
            raise UserError(f"cannot keep {count} of the {size} steps of section {index + 1} of {len(counts)}")
        stride = 1.0 if count == 1 else (size - 1) / (count - 1)
        kept += [start + round(i * stride) for i in range(count)]
        start += size
    return np.array(kept)


@SCHEDULES.register("respaced", example={"steps": "250"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Respaced(TableSchedule):
    """Another table at the steps that `space_timesteps` keeps; its step i is step `timestep_map[i]` of the base."""

    num_steps: int = 0
    base: str | Mapping[str, Any] | TableSchedule = "ddpm_linear"
    steps: str = "250"

    def __post_init__(self):
        object.__setattr__(self, "base", _table(self.base, "respaced"))
        object.__setattr__(self, "num_steps", len(self.timestep_map))
        super().__post_init__()

    @property
    def timestep_map(self) -> np.ndarray:
        """For every step, the corresponding step of the base."""
        return space_timesteps(self.base.num_steps, self.steps)

    def betas(self) -> np.ndarray:
        log_alphas = np.cumsum(np.log1p(-self.base.betas()))[self.timestep_map]
        return -np.expm1(np.diff(log_alphas, prepend=0.0))


@SCHEDULES.register("zero_terminal_snr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(NoiseSchedule):
    """Another table's alphas, alpha -> (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T) (Lin et al. 2023, 2305.08891).

    The first step keeps its alpha and the last has alpha 0. Between steps alpha, not its logarithm, is linear in t,
    because the logarithm ends at minus infinity. From clean data at t = 0 to the first step, where the table says
    nothing, it is linear too.
    """

    base: str | Mapping[str, Any] | TableSchedule = "ddpm_linear"

    def __post_init__(self):
        object.__setattr__(self, "base", _table(self.base, "zero_terminal_snr"))
        if self.base.num_steps < 2:
            raise UserError("zero_terminal_snr needs a table of at least 2 steps")

    @property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        times = np.arange(self.base.num_steps + 1) / self.base.num_steps
        alphas = np.exp(0.5 * np.cumsum(np.log1p(-self.base.betas())))
        first, last = alphas[0], alphas[-1]
        scaled = (alphas - last) * (first / (first - last))
        return times, np.concatenate([[1.0], scaled])

    def alpha(self, t: Array) -> Array:
        t = as_float(t)
        xp = array_module(t)
        return xp.interp(t, *(xp.asarray(knots, t.dtype) for knots in self._knots))

    def _one_minus_alpha(self, t: Array) -> Array:
        t = as_float(t)
        xp = array_module(t)
        times, alphas = self._knots
        return xp.interp(t, xp.asarray(times, t.dtype), xp.asarray(1.0 - alphas, t.dtype))

    def sigma(self, t: Array) -> Array:
        rest = self._one_minus_alpha(t)
        return array_module(rest).sqrt(rest * (2.0 - rest))

    def time_of_log_snr(self, log_snr: Array) -> Array:
        log_snr = as_float(log_snr)
        xp = array_module(log_snr)
        # 1 - alpha with alpha^2 = sigmoid(log_snr): accurate also where alpha is nearly one
        rest = -xp.expm1(-0.5 * xp.logaddexp(xp.zeros_like(log_snr), -log_snr))
        times, alphas = self._knots
        return xp.interp(rest, xp.asarray(1.0 - alphas, rest.dtype), xp.asarray(times, rest.dtype))

    def _slope(self, t: Array) -> Array:
        t = as_float(t)
        xp = array_module(t)
        count = self.base.num_steps
        slopes = xp.asarray(np.diff(self._knots[1]) * count, t.dtype)
        return slopes[xp.clip(xp.ceil(t * count).astype(jnp.int32) - 1, 0, count - 1)]

    def alpha_derivative(self, t: Array) -> Array:
        return self._slope(t)

    def sigma_derivative(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return -self.alpha(t) * self._slope(t) / self.sigma(t)


@SCHEDULES.register("shifted")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(NoiseSchedule):
    """Another schedule with its log-SNR lowered by 2 log(shift), as higher resolutions want (SD3, eq. 23).

    Esser et al. 2024 (arXiv 2403.03206); shift = sqrt(pixels / pixels of the base resolution). The curves stay and time
    moves: alpha(t) = base.alpha(u) with base.log_snr(u) = base.log_snr(t) - 2 log(shift). On rectified_flow this is
    u = shift t / (1 + (shift - 1) t), and is computed so.
    """

    base: str | Mapping[str, Any] | NoiseSchedule = "rectified_flow"
    shift: float = 3.0

    def __post_init__(self):
        if isinstance(self.base, str) or hasattr(self.base, "keys"):
            object.__setattr__(self, "base", SCHEDULES.build(self.base))
        if self.shift <= 0:
            raise UserError(f"schedule shifted needs shift > 0, got {self.shift}")
        if np.isfinite(self.base.log_snr(0.0)) or np.isfinite(self.base.log_snr(1.0)):
            raise UserError(
                "schedule shifted needs a base that runs from clean data to pure noise, such as rectified_flow or gvp; "
                f"{type(self.base).__name__} stops at a finite log-SNR: change its own ends instead"
            )

    @property
    def _is_straight(self) -> bool:
        return type(self.base).__name__ == "RectifiedFlow"

    def base_time(self, t: Array) -> Array:
        """The base's time u."""
        t = as_float(t)
        if self._is_straight:
            return self.shift * t / (1.0 + (self.shift - 1.0) * t)
        with np.errstate(divide="ignore"):
            return self.base.time_of_log_snr(self.base.log_snr(t) - 2.0 * np.log(self.shift))

    def alpha(self, t: Array) -> Array:
        if self._is_straight:  # 1 - u without cancellation
            t = as_float(t)
            return (1.0 - t) / (1.0 + (self.shift - 1.0) * t)
        return self.base.alpha(self.base_time(t))

    def sigma(self, t: Array) -> Array:
        return self.base.sigma(self.base_time(t))

    def log_snr(self, t: Array) -> Array:
        return self.base.log_snr(t) - 2.0 * np.log(self.shift)

    def time_of_log_snr(self, log_snr: Array) -> Array:
        return self.base.time_of_log_snr(as_float(log_snr) + 2.0 * np.log(self.shift))
