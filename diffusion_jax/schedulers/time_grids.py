"""Which noise levels sampling visits: N transitions from t = 1 down to clean data.

A grid is made once, on the host, in float64. Its N + 1 points run from pure noise to data, and its last point is
*clean*: alpha = 1, sigma = 0. Where sigma(0) = 0 the clean point is t = 0 itself. Where the schedule stops short of
clean data, as EDM's does at sigma_min, the last transition jumps from t = 0 to clean data, which is the appended
sigma = 0 of Karras et al. 2022, eq. 5.

A rule spaces its points in some measure of noise:

    uniform    in t; on the edm schedule this is Karras' spacing
    karras     in (sigma / alpha)^(1 / rho), Karras et al. 2022, eq. 5, for any schedule
    log_snr    in log-SNR, Lu et al. 2022 (arXiv 2206.00927, DPM-Solver)

The last two need finite noise levels. At an end where the schedule's log-SNR is infinite they space their points
between t_min or t_max instead and reach that end by one more transition. All return N transitions exactly.
"""

import dataclasses

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.schedulers.schedule import NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TimeGrid:
    """N + 1 noise levels, from the noisiest to the cleanest; all arrays float64 [N + 1] on the host.

    Two grids are equal when they hold the same numbers of the same schedule, so a grid may be static under jit.
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
                f"a time grid must go strictly from noise to data, got times {self.times}; "
                "fewer steps or a wider range of noise levels will mend it"
            )

    @classmethod
    def from_times(cls, schedule: NoiseSchedule, times: np.ndarray, *, to_clean: bool = True) -> "TimeGrid":
        """The grid through the given decreasing times; `to_clean` adds clean data as last point if it is not there."""
        times = np.asarray(times, np.float64)
        alphas, sigmas, log_snrs = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)
        if to_clean and sigmas[-1] > 0:
            times, alphas, sigmas, log_snrs = (
                np.append(values, last)
                for values, last in ((times, min(0.0, times[-1])), (alphas, 1.0), (sigmas, 0.0), (log_snrs, np.inf))
            )
        return cls(schedule=schedule, times=times, alphas=alphas, sigmas=sigmas, log_snrs=log_snrs)

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
    """How the points of a grid are spaced."""

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

    t_min and t_max stand in for an end of the schedule where the log-SNR is infinite; elsewhere they are not used.
    With `to_clean` False the grid stops at the last spaced point, with noise left, as DPM-Solver's own code does.
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


@GRIDS.register("log_snr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSNRGrid(NoiseLevelGrid):
    """Equal steps in log-SNR."""

    def spaced(self, first: float, last: float, num_points: int) -> np.ndarray:
        return np.linspace(first, last, num_points)


def _require_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise UserError(f"a sampler needs at least 1 step, got {num_steps}")
