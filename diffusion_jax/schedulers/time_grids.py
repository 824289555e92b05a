"""The noise levels that sampling visits: N transitions from t = 1 down to clean data.

A grid is made once, on the host, in float64. Its N + 1 points run from pure noise to data, and its last point is
*clean*: alpha = 1, sigma = 0. Where sigma(0) = 0 the clean point is t = 0 itself. Where the schedule stops short of
clean data, as EDM's does at sigma_min, the last transition jumps from t = 0 to clean data, which is the appended
sigma = 0 of Karras et al. 2022, eq. 5.

A rule spaces its points in some measure of noise:

    uniform    in t; on the edm schedule this is Karras' spacing
    karras     in (sigma / alpha)^(1 / rho), Karras et al. 2022, eq. 5, for any schedule
    log_snr    in log-SNR, Lu et al. 2022 (arXiv 2206.00927, DPM-Solver)

    exponential  another name of log_snr: equal ratios of noise levels
    beta       at quantiles of a Beta distribution over t, Lee et al. 2024 (arXiv 2407.12173)

and, for a model of T discrete steps with step n at t = (n + 1) / T, of which N are visited before clean data:

    linspace      equally from step T - 1 to step 0
    leading       0, k, 2 k, ... with the whole stride k = T // N; the first step is not T - 1
    trailing      T - 1, T - 1 - T / N, ...
    quadratic     equally spaced in the square root, up to 0.8 T (Song et al. 2020, arXiv 2010.02502, app. D.2)
    dpm_linspace  N + 1 equally from step T - 1 to step 0, rounded, without step 0
    dpm_leading   k, 2 k, ... with the whole stride k = T // (N + 1)

The last two are diffusers' spacings "linspace" and "leading" for the DPM-Solver family, UniPC, DEIS and SA-Solver,
which differ from those for its DDIM, PNDM and Euler. Without `to_clean` a grid ends at step 0, where noise is left,
with the same number of transitions and the same strides (diffusers' set_alpha_to_one=False,
final_sigmas_type="sigma_min").

Two rules change the grid of another rule: `shift` moves times towards noise (SD3), `edm_discretised` rounds noise
levels to those of a discrete model.

karras and log_snr need finite noise levels. At an end where the schedule's log-SNR is infinite they space their points
between t_min or t_max instead and reach that end by one more transition. All return N transitions exactly.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.special

from diffusion_jax.domains import shown
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.schedulers.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TimeGrid:
    """N + 1 noise levels, from the noisiest to the cleanest; all arrays float64 [N + 1] on the host.

    Two grids are equal when they hold the same numbers for the same schedule, so a grid may be static under jit.
    """

    schedule: NoiseSchedule
    times: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray
    log_snrs: np.ndarray

    def __post_init__(self):
        if self.times.ndim != 1 or len(self.times) < 2:
            raise UserError(f"a time grid needs at least one transition, got times of shape {self.times.shape}")
        if not (np.all(np.diff(self.times) <= 0) and np.all(np.diff(self.log_snrs) > 0)):
            raise UserError(
                f"a time grid must go strictly from noise to data, got times {shown(self.times.tolist())}; "
                "take fewer steps or a wider range of noise levels"
            )

    @classmethod
    def from_times(cls, schedule: NoiseSchedule, times: np.ndarray, *, to_clean: bool = True) -> "TimeGrid":
        """The grid through the given decreasing times; `to_clean` appends clean data if it is not the last point."""
        times = np.asarray(times, np.float64)
        alphas, sigmas, log_snrs = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)
        if to_clean and sigmas[-1] > 0:
            times, alphas, sigmas, log_snrs = (
                np.append(values, last)
                for values, last in ((times, min(0.0, times[-1])), (alphas, 1.0), (sigmas, 0.0), (log_snrs, np.inf))
            )
        return cls(schedule=schedule, times=times, alphas=alphas, sigmas=sigmas, log_snrs=log_snrs)

    def moved(self, change: Callable[[np.ndarray], np.ndarray]) -> "TimeGrid":
        """The grid through `change(times)`; if the last transition jumps to clean data, that point stays."""
        jumps = self.ends_clean and self.schedule.sigma(0.0) > 0
        times = self.times[:-1] if jumps else self.times
        return TimeGrid.from_times(self.schedule, change(times), to_clean=self.ends_clean)

    @property
    def num_steps(self) -> int:
        """N, the number of transitions."""
        return len(self.times) - 1

    @property
    def ends_clean(self) -> bool:
        """Whether the last point is clean data."""
        return bool(self.sigmas[-1] == 0)

    def _key(self) -> tuple:
        return self.schedule, self.times.tobytes(), self.sigmas.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimeGrid) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridRule:
    """How the points of a grid are spaced; `starts_at_one` says whether the grid always starts at t = 1."""

    starts_at_one: ClassVar[bool] = True

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        """The grid of `num_steps` transitions.

        Raises:
          UserError: num_steps < 1, or no such grid exists on this schedule.
        """
        raise NotImplementedError


GRIDS: Registry[GridRule] = Registry("time grid")


@GRIDS.register("uniform")
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformGrid(GridRule):
    """Equal steps in t from 1 to 0."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        _require_steps(num_steps)
        clean_at_zero = schedule.sigma(0.0) == 0
        return TimeGrid.from_times(schedule, np.linspace(1.0, 0.0, num_steps + 1 if clean_at_zero else num_steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevelGrid(GridRule):
    """Base of the rules that space points in a function of the noise level.

    t_min and t_max replace an end of the schedule where the log-SNR is infinite; elsewhere they are not used. With
    `to_clean` False the grid stops at the last spaced point, where noise is left, as DPM-Solver's own code does.
    """

    t_min: float = 1e-3
    t_max: float = 1.0 - 1e-3
    to_clean: bool = True

    def __post_init__(self):
        if not 0 < self.t_min < self.t_max < 1:
            raise UserError(f"a time grid needs 0 < t_min < t_max < 1, got {self.t_min}, {self.t_max}")

    def spaced(self, first: float, last: float, num_points: int) -> np.ndarray:
        """`num_points` log-SNRs from `first` (the noisiest) up to `last`."""
        raise NotImplementedError

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        _require_steps(num_steps)
        noisiest = 1.0 if np.isfinite(schedule.log_snr(1.0)) else self.t_max
        cleanest = 0.0 if np.isfinite(schedule.log_snr(0.0)) else self.t_min
        before = [] if noisiest == 1.0 else [1.0]
        count = num_steps + (0 if self.to_clean else 1) - len(before)
        first, last = float(schedule.log_snr(noisiest)), float(schedule.log_snr(cleanest))
        times = np.array(schedule.time_of_log_snr(self.spaced(first, last, count)))
        if count > 0:
            times[0] = noisiest
        if count > 1:
            times[-1] = cleanest
        return TimeGrid.from_times(schedule, np.concatenate([before, times]), to_clean=self.to_clean)


@GRIDS.register("karras")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KarrasGrid(NoiseLevelGrid):
    """Equal steps in (sigma / alpha)^(1 / rho)."""

    rho: float = 7.0

    def spaced(self, first: float, last: float, num_points: int) -> np.ndarray:
        roots = np.linspace(np.exp(-0.5 * first / self.rho), np.exp(-0.5 * last / self.rho), num_points)
        return -2.0 * self.rho * np.log(roots)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSNRGrid(NoiseLevelGrid):
    """Equal steps in log-SNR."""

    def spaced(self, first: float, last: float, num_points: int) -> np.ndarray:
        return np.linspace(first, last, num_points)


GRIDS.register("log_snr")(LogSNRGrid)
GRIDS.register("exponential")(LogSNRGrid)


@GRIDS.register("beta")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaGrid(GridRule):
    """Times at equally spaced quantiles of Beta(a, b): dense at both ends for a, b < 1."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self):
        if self.a <= 0 or self.b <= 0:
            raise UserError(f"time grid beta needs a > 0 and b > 0, got {self.a} and {self.b}")

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        uniform = UniformGrid()(schedule, num_steps)
        return uniform.moved(lambda times: scipy.special.betaincinv(self.a, self.b, times))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteGrid(GridRule):
    """Base of the rules that choose among T discrete steps.

    `rounded` moves every choice to a whole step; without it a network of continuous time receives fractions. `offset`
    is added to all steps (diffusers calls it steps_offset).
    """

    num_train_steps: int = 1000
    rounded: bool = False
    offset: int = 0
    to_clean: bool = True

    def indices(self, num_steps: int) -> np.ndarray:
        """N choices among 0 ... T - 1, falling."""
        raise NotImplementedError

    def whole(self, indices: np.ndarray) -> np.ndarray:
        """The nearest whole steps."""
        return np.round(indices)

    def visited(self, num_steps: int) -> np.ndarray:
        """All steps of a grid with N transitions except clean data: the choices, and step 0 if the grid ends there."""
        chosen = self.indices(num_steps) + self.offset
        return chosen if self.to_clean else np.append(chosen, 0.0)

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        _require_steps(num_steps)
        if num_steps > self.num_train_steps:
            raise UserError(f"{num_steps} steps are more than the {self.num_train_steps} of the model: take fewer")
        indices = self.visited(num_steps)
        indices = self.whole(indices) if self.rounded else indices
        if indices[0] > self.num_train_steps - 1 or indices[-1] < 0:
            raise UserError(f"offset {self.offset} leads outside the model's steps: {indices[0]} ... {indices[-1]}")
        return TimeGrid.from_times(schedule, (indices + 1) / self.num_train_steps, to_clean=self.to_clean)


@GRIDS.register("linspace")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinspaceGrid(DiscreteGrid):
    """From step T - 1 to step 0."""

    def indices(self, num_steps: int) -> np.ndarray:
        return np.linspace(self.num_train_steps - 1, 0, num_steps)

    def visited(self, num_steps: int) -> np.ndarray:
        return self.indices(num_steps + (not self.to_clean)) + self.offset


@GRIDS.register("leading")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LeadingGrid(DiscreteGrid):
    """Whole strides from step 0 upwards.

    Without `to_clean` the last transition goes from step `offset` to step 0, as in Stable Diffusion (offset 1). With
    offset 0, step 0 is already there, so one more stride is taken at the noisy end, if the model has that step.
    """

    starts_at_one: ClassVar[bool] = False

    def indices(self, num_steps: int) -> np.ndarray:
        return np.arange(num_steps)[::-1] * (self.num_train_steps // num_steps) * 1.0

    def visited(self, num_steps: int) -> np.ndarray:
        if self.to_clean or self.offset:
            return super().visited(num_steps)
        stride = self.num_train_steps // num_steps
        if num_steps * stride >= self.num_train_steps:
            raise UserError(
                f"time grid leading with to_clean=False and offset=0 has no {num_steps} strides of {stride} among "
                f"{self.num_train_steps} steps: set offset=1, or take a number of steps that does not divide them"
            )
        return np.arange(num_steps + 1)[::-1] * stride * 1.0


@GRIDS.register("trailing")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrailingGrid(DiscreteGrid):
    """Strides of T / N from step T - 1 downwards."""

    def indices(self, num_steps: int) -> np.ndarray:
        return self.num_train_steps * (1 - np.arange(num_steps) / num_steps) - 1

    def whole(self, indices: np.ndarray) -> np.ndarray:
        """The nearest whole steps, counted from 1 as in diffusers, where halves are rounded to even numbers."""
        return np.round(indices + 1) - 1


@GRIDS.register("quadratic")
@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticGrid(DiscreteGrid):
    """Squares of equal steps up to `top` T."""

    starts_at_one: ClassVar[bool] = False

    top: float = 0.8

    def indices(self, num_steps: int) -> np.ndarray:
        return np.linspace((self.top * self.num_train_steps) ** 0.5, 0, num_steps) ** 2

    def visited(self, num_steps: int) -> np.ndarray:
        return self.indices(num_steps + (not self.to_clean)) + self.offset


@GRIDS.register("dpm_linspace")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMLinspaceGrid(DiscreteGrid):
    """Equally spaced downwards from step T - 1, as if to reach step 0 in N steps; rounded to whole steps."""

    rounded: bool = True

    def indices(self, num_steps: int) -> np.ndarray:
        return np.linspace(self.num_train_steps - 1, 0, num_steps + 1)[:-1]


@GRIDS.register("dpm_leading")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMLeadingGrid(DiscreteGrid):
    """Whole strides upwards from step 0, which is not visited."""

    starts_at_one: ClassVar[bool] = False

    def indices(self, num_steps: int) -> np.ndarray:
        return np.arange(1, num_steps + 1)[::-1] * (self.num_train_steps // (num_steps + 1)) * 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedGrid(GridRule):
    """Base of the rules that change the grid of another one, `base`."""

    base: str | Mapping[str, Any] | GridRule = "uniform"

    def __post_init__(self):
        if isinstance(self.base, str) or hasattr(self.base, "keys"):
            object.__setattr__(self, "base", GRIDS.build(self.base))


@GRIDS.register("shift")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftGrid(ChangedGrid):
    """t -> shift t / (1 + (shift - 1) t): towards noise, as higher resolutions want (Esser et al. 2024, eq. 23)."""

    shift: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        if self.shift <= 0:
            raise UserError(f"time grid shift needs shift > 0, got {self.shift}")

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        return self.base(schedule, num_steps).moved(lambda t: self.shift * t / (1.0 + (self.shift - 1.0) * t))


def shifted(rule: GridRule, shift: float | None) -> GridRule:
    """The rule with its times shifted towards noise; None and 1 leave it as it is."""
    return rule if shift in (None, 1.0) else ShiftGrid(base=rule, shift=shift)


def shift_of_size(schedule: NoiseSchedule, tokens: int, trained: int) -> float:
    """The shift for pictures of `tokens` positions by a model of `trained`, sqrt(tokens / trained) (ibid.).

    It leaves as much of a picture to be seen through the noise at a time: an average over more pixels removes more of
    it. That holds on the straight path, alpha = 1 - t and sigma = t; other schedules are left as they are, 1.
    """
    times = np.linspace(0.1, 0.9, 9)
    straight = np.allclose(schedule.alpha(times), 1.0 - times) and np.allclose(schedule.sigma(times), times)
    return (tokens / trained) ** 0.5 if straight else 1.0


@GRIDS.register("edm_discretised")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMDiscretisedGrid(ChangedGrid):
    """Noise levels rounded to the nearest of a model's `num_train_steps` own (Karras et al. 2022, table 1, iDDPM).

    Two points that round to one level are refused; use fewer steps or a model with more levels.
    """

    num_train_steps: int = 1000

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> TimeGrid:
        own = (np.arange(self.num_train_steps) + 1) / self.num_train_steps
        with np.errstate(divide="ignore"):
            levels = np.exp(-0.5 * schedule.log_snr(own))

        def nearest(times: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):
                wanted = np.exp(-0.5 * schedule.log_snr(times))
                gaps = np.abs(levels - wanted[:, None])
            rounded = own[np.argmin(np.where(np.isnan(gaps), 0.0, gaps), axis=1)]
            return np.where(times == 0.0, 0.0 if schedule.sigma(0.0) == 0 else rounded, rounded)

        return self.base(schedule, num_steps).moved(nearest)


def _require_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise UserError(f"a sampler needs at least 1 step, got {num_steps}")
