"""The way back from noise to data: the frame that every sampler fills, and the loop that drives it.

A sampler walks a `TimeGrid` from t = 1 to clean data and sees the model only as a Denoiser, (xt, t) -> (x0, noise):

    state = init(x_1)
    for each transition t -> s of the grid:
        state = step(denoise, state, transition, key)
    x0 = finish(state)

`init`, `step` and `finish` are pure, and the loop is one `lax.scan`, so the network is compiled once whatever N is.
Constants of the update rule are computed before, in `constants(grid)`: on the host, in float64, for all transitions at
once; there a sampler also says whether it can walk the grid. The state is float32 (float64 under x64) whatever the
precision of the network.

Noise is drawn per example, from keys folded from (key, step, position in the global batch): what an example becomes
does not depend on how the batch is split.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, Prediction, TimeGrid
from diffusion_jax.schedulers.arrays import as_compute, compute_dtype


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("index", "is_last", "t", "s", "alpha_t", "sigma_t", "alpha_s", "sigma_s", "log_snr_t", "log_snr_s"),
        "constants",
    ],
    meta_fields=["schedule"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Transition:
    """One step of the grid, from time t to the less noisy time s; scalars, or [N] for a whole grid.

    log_snr_t is -inf where alpha_t = 0, log_snr_s is +inf at clean data. `constants` are the sampler's own, with any
    axes after that of the steps.
    """

    index: Int[Array, "*steps"]
    is_last: Bool[Array, "*steps"]
    t: Float[Array, "*steps"]
    s: Float[Array, "*steps"]
    alpha_t: Float[Array, "*steps"]
    sigma_t: Float[Array, "*steps"]
    alpha_s: Float[Array, "*steps"]
    sigma_s: Float[Array, "*steps"]
    log_snr_t: Float[Array, "*steps"]
    log_snr_s: Float[Array, "*steps"]
    constants: Mapping[str, Float[Array, "..."]]
    schedule: NoiseSchedule


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What a one-step sampler carries: the current xt, [batch, ...]."""

    x: Float[Array, "batch ..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """An update rule t -> s. A member gives `step`, and what of the rest differs from these defaults.

    `order` is the order of convergence to the exact solution of the probability-flow ODE, of a sampler that draws no
    noise with its default options; the conformance tests measure it.

    `denoiser_kind` is what the denoiser must be: "denoiser", x0 is the mean of the data given xt; "consistency", x0 is
    where the probability-flow ODE ends; "flow_map", called with a second time (see `schedulers.Denoiser`).
    """

    order: ClassVar[int | None] = None
    denoiser_kind: ClassVar[Literal["denoiser", "consistency", "flow_map"]] = "denoiser"

    @property
    def stochastic(self) -> bool:
        """Whether `step` draws noise and so needs a key."""
        return False

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        """Evaluations of the denoiser on a grid of `num_steps` transitions."""
        return num_steps

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        """The constants of the update rule, float64 [N] each; `step` finds them in `transition.constants`.

        Raises:
          UserError: the sampler cannot walk this grid.
        """
        return {}

    def init(self, x: Float[Array, "batch ..."]) -> Any:
        """The state at the first point of the grid; it must have a field `x`."""
        return State(x=x)

    def step(self, denoise: Denoiser, state: Any, transition: Transition, key: BatchKey | None) -> Any:
        """The state at s from the state at t."""
        raise NotImplementedError

    def finish(self, state: Any) -> Float[Array, "batch ..."]:
        """The sample, from the state at the last point of the grid."""
        return state.x

    def evaluations(self, state: Any, num_steps: int, *, ends_clean: bool = True) -> int | Int[Array, ""]:
        """Evaluations made: `nfe`, but for an adaptive sampler, which counts them in its last state."""
        return self.nfe(num_steps, ends_clean=ends_clean)


SAMPLERS: Registry[Sampler] = Registry("sampler")

Projection = Callable[[Float[Array, "batch ..."], Transition, BatchKey | None], Float[Array, "batch ..."]]
"""(x_s, transition t -> s, key) -> x_s: a correction of the state at time s; key is None where `sample` got none."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x0", "nfe", "trajectory"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleResult:
    """The samples [batch, ...], the number of denoiser evaluations, and all states [N + 1, batch, ...] if asked for."""

    x0: Float[Array, "batch ..."]
    nfe: int | Int[Array, ""]
    trajectory: Float[Array, "steps batch ..."] | None = None


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    grid: TimeGrid,
    noise: Float[Array, "batch ..."] | tuple[int, ...],
    key: BatchKey | None = None,
    *,
    x0_transform: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]] | None = None,
    project: Projection | None = None,
    return_trajectory: bool = False,
) -> SampleResult:
    """Draw samples; to be called inside jit, with `sampler` and `grid` static.

    Args:
      sampler: the update rule.
      denoiser: (xt, t) -> Prediction; called with scalar t.
      grid: the noise levels to visit.
      noise: unit Gaussian [batch, ...], which is scaled by the schedule's `prior_std` here; or the shape of one
        example, whose noise is then drawn from `key`.
      key: per-example keys; may be left out when `noise` is given and the sampler is deterministic.
      x0_transform: applied to every prediction of x0, for example clipping; the predicted noise is made to agree.
      project: applied to the state after every step, for example to put known pixels back (see `inverse.py`).
      return_trajectory: also return the state at every point of the grid.

    Raises:
      UserError: the sampler cannot walk this grid, or a key is missing.
    """
    draws_prior = isinstance(noise, tuple)
    if key is None and (draws_prior or sampler.stochastic):
        raise UserError(f"sampler {type(sampler).__name__} draws random numbers here; give it a key")
    if draws_prior:
        noise = key.fold_in("prior").normal(noise, compute_dtype())
    step_keys = None if key is None else key.fold_in("sampler").counter_based()
    denoise = _in_compute_dtype(denoiser, grid, x0_transform)

    def step(state: Any, transition: Transition) -> tuple[Any, Array | None]:
        step_key = None if step_keys is None else step_keys.at_step(transition.index)
        state = sampler.step(denoise, state, transition, step_key)
        if project is not None:
            project_key = None if step_key is None else step_key.fold_in("project")
            state = dataclasses.replace(state, x=project(state.x, transition, project_key))
        return state, state.x if return_trajectory else None

    x_1 = grid.schedule.prior_std * as_compute(noise)
    state, visited = jax.lax.scan(step, sampler.init(x_1), transitions(sampler, grid))
    return SampleResult(
        x0=sampler.finish(state),
        nfe=sampler.evaluations(state, grid.num_steps, ends_clean=grid.ends_clean),
        trajectory=jnp.concatenate([x_1[None], visited]) if return_trajectory else None,
    )


def evaluation_times(sampler: Sampler, grid: TimeGrid) -> Float[np.ndarray, " evaluations"]:
    """The times at which a sampler asks the denoiser, in order; of an adaptive one, on data that is zero.

    Found by running it on one number.
    """
    times: list[float] = []

    def zero(xt: Array, t: Array, *s: Array) -> Prediction:
        times.append(float(t))
        return Prediction.from_x0(grid.schedule, jnp.zeros_like(xt), xt, t)

    with jax.disable_jit():  # so that only the branches that are taken are called, with numbers
        sample(sampler, zero, grid, jnp.ones((1, 1, 1, 1)), BatchKey.create(jax.random.key(0), 1))
    return np.array(times)


def transitions(sampler: Sampler, grid: TimeGrid) -> Transition:
    """All transitions of a grid with the sampler's constants, each field [N]."""
    index = np.arange(grid.num_steps)
    return Transition(
        index=jnp.asarray(index),
        is_last=jnp.asarray(index == grid.num_steps - 1),
        t=as_compute(grid.times[:-1]),
        s=as_compute(grid.times[1:]),
        alpha_t=as_compute(grid.alphas[:-1]),
        sigma_t=as_compute(grid.sigmas[:-1]),
        alpha_s=as_compute(grid.alphas[1:]),
        sigma_s=as_compute(grid.sigmas[1:]),
        log_snr_t=as_compute(grid.log_snrs[:-1]),
        log_snr_s=as_compute(grid.log_snrs[1:]),
        constants={name: as_compute(values) for name, values in sampler.constants(grid).items()},
        schedule=grid.schedule,
    )


def require_signal(sampler: Sampler, grid: TimeGrid) -> None:
    """For samplers that work with sigma / alpha: refuse a grid that starts at alpha = 0."""
    if grid.alphas[0] == 0:
        raise UserError(
            f"sampler {type(sampler).__name__} steps in sigma / alpha, which is infinite at t = 1 of "
            f"{type(grid.schedule).__name__}; use flow_euler, ddim or dpmpp_2m"
        )


def _in_compute_dtype(denoiser: Denoiser, grid: TimeGrid, x0_transform: Callable[[Array], Array] | None) -> Denoiser:
    """The denoiser with predictions in the precision of the state, transformed if asked."""

    def denoise(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], *s: Float[Array, "*batch"]) -> Prediction:
        prediction = jax.tree.map(as_compute, denoiser(xt, t, *s))
        if x0_transform is None:
            return prediction
        transformed = Prediction.from_x0(grid.schedule, x0_transform(prediction.x0), xt, t)
        return dataclasses.replace(transformed, variance_fraction=prediction.variance_fraction)

    return denoise
