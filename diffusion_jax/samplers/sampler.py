"""From noise to data: the base of every sampler, and the loop that runs it.

A sampler walks a `TimeGrid` from t = 1 to clean data and sees the model only as a Denoiser, (xt, t) -> (x0, noise):

    state = init(x_1)
    for each transition t -> s of the grid:
        state = step(denoise, state, transition, key)
    x0 = finish(state)

`init`, `step` and `finish` are pure, and the loop is one `lax.scan`, so the network is compiled once for any N.
Constants of the update rule are computed beforehand, in `constants(grid)`: on the host, in float64, for all transitions
at once; there a sampler also refuses a grid that it cannot walk. The state is float32 (float64 under x64), whatever the
precision of the network.

Noise is drawn per example, from keys folded from (key, step, position in the global batch), so an example does not
depend on how the batch is split.
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
    axes after the axis of the steps.
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
    """The state of a one-step sampler: the current xt, [batch, ...]."""

    x: Float[Array, "batch ..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """An update rule t -> s. A subclass gives `step` and overrides these defaults where it differs.

    `process_kind` is the kind of process that the sampler belongs to, in the process's own words.

    `order` is the order of convergence to the exact solution of the probability-flow ODE, for a sampler that draws no
    noise with its default options; the conformance tests measure it.

    `denoiser_kind` is what the denoiser must be: "denoiser", x0 is the mean of the data given xt; "consistency", x0 is
    the end point of the probability-flow ODE; "flow_map", called with a second time (see `schedulers.Denoiser`).
    """

    process_kind: ClassVar[str] = "gaussian"
    order: ClassVar[int | None] = None
    denoiser_kind: ClassVar[Literal["denoiser", "consistency", "flow_map"]] = "denoiser"

    @property
    def stochastic(self) -> bool:
        """Whether `step` draws noise and so needs a key."""
        return False

    @property
    def one_step(self) -> bool:
        """Whether every step depends only on the current xt, so that steps may be repeated."""
        return type(self).init is Sampler.init

    @property
    def asks_in_loops(self) -> bool:
        """Whether a step first calls the denoiser within its own loop, which cannot pass on a memory."""
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
        """Evaluations made: `nfe`; for an adaptive sampler, the count in its last state."""
        return self.nfe(num_steps, ends_clean=ends_clean)


SAMPLERS: Registry[Any] = Registry("sampler")
"""All samplers; those of numbers are `Sampler`, those of tokens `TokenSampler`."""


def samplers_of(process_kind: str) -> list[str]:
    """The names of the samplers for one kind of process ("gaussian", "tokens", "token_chain")."""
    return [name for name in SAMPLERS if SAMPLERS.example(name).process_kind == process_kind]


Correction = Callable[[Float[Array, "batch ..."], Transition, BatchKey | None], Float[Array, "batch ..."]]
"""(x_s, transition t -> s, key) -> x_s: a correction of the state at time s; key is None if `sample` got none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
    """Transitions in the order in which they are taken, including backward ones.

    Attributes:
      index: for every move, the index of the grid's transition t -> s.
      up: for every move, whether noise is added instead, s -> t.
    """

    index: tuple[int, ...]
    up: tuple[bool, ...]

    def nfe(self, sampler: Sampler, num_steps: int, *, ends_clean: bool = True) -> int:
        """Evaluations of the denoiser with a one-step sampler."""
        down = [index for index, up in zip(self.index, self.up, strict=True) if not up]
        last = sampler.nfe(1, ends_clean=ends_clean)
        earlier = sampler.nfe(2, ends_clean=ends_clean) - last
        at_the_end = down.count(num_steps - 1)
        return earlier * (len(down) - at_the_end) + last * at_the_end


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
    project: Correction | None = None,
    walk: Walk | None = None,
    memory: Callable[[Float[Array, "batch ..."]], Any] | None = None,
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
      x0_transform: applied to every prediction of x0, for example clipping; the predicted noise is adjusted to it.
      project: applied to the state after every step, for example to put known pixels back (see `projections/`).
      walk: the order in which transitions are taken, for a one-step sampler; by default each once.
      memory: x_1 -> the initial memory of a denoiser that has one. Such a denoiser is called with `memory=` and returns
        (Prediction, memory). All evaluations of a step receive the same memory, and the first one gives the next
        step's.
      return_trajectory: also return the state at every point of the grid.

    Raises:
      UserError: the sampler cannot walk this grid or carry a memory, or a key is missing.
    """
    draws_prior = isinstance(noise, tuple)
    if key is None and (draws_prior or sampler.stochastic or walk is not None):
        raise UserError(f"sampler {type(sampler).__name__} draws random numbers here; give it a key")
    if walk is not None and not sampler.one_step:
        raise UserError(f"sampler {type(sampler).__name__} cannot repeat a step: use ddpm, ddim or euler")
    if memory is not None:
        require_memory(sampler)
    if draws_prior:
        noise = key.fold_in("prior").normal(noise, compute_dtype())
    step_keys = None if key is None else key.fold_in("sampler").counter_based()

    def down(state: Any, remembered: Any, transition: Transition, step_key: BatchKey | None) -> tuple[Any, Any]:
        after: list[Any] = []  # the memory after each evaluation, in the order of the calls
        asked = denoiser if memory is None else _with_memory(denoiser, remembered, after)
        state = sampler.step(_in_compute_dtype(asked, grid, x0_transform), state, transition, step_key)
        if project is not None:
            project_key = None if step_key is None else step_key.fold_in("project")
            state = dataclasses.replace(state, x=project(state.x, transition, project_key))
        return state, after[0] if after else remembered

    def step(carry: tuple[Any, Any], move: tuple[Transition, Array, Array | None]) -> tuple[Any, Array | None]:
        transition, number, up = move
        step_key = None if step_keys is None else step_keys.at_step(number)
        if up is None:
            carry = down(*carry, transition, step_key)
        else:
            back = functools.partial(_noised, transition=transition, key=step_key)
            carry = jax.lax.cond(
                up,
                lambda: (dataclasses.replace(carry[0], x=back(carry[0].x)), carry[1]),
                lambda: down(*carry, transition, step_key),
            )
        return carry, carry[0].x if return_trajectory else None

    x_1 = grid.schedule.prior_std * as_compute(noise)
    first = (sampler.init(x_1), None if memory is None else memory(x_1))
    (state, _), visited = jax.lax.scan(step, first, _moves(sampler, grid, walk))
    counted = sampler.evaluations(state, grid.num_steps, ends_clean=grid.ends_clean)
    return SampleResult(
        x0=sampler.finish(state),
        nfe=counted if walk is None else walk.nfe(sampler, grid.num_steps, ends_clean=grid.ends_clean),
        trajectory=jnp.concatenate([x_1[None], visited]) if return_trajectory else None,
    )


def require_memory(sampler: Sampler) -> None:
    """Refuse a sampler whose steps cannot carry a memory."""
    if sampler.asks_in_loops:
        raise UserError(
            f"sampler {type(sampler).__name__} asks the network within its own loop, where guidance with momentum "
            "cannot keep its state: use heun, ddim or dpmpp_2m, or momentum 0"
        )


def _moves(sampler: Sampler, grid: TimeGrid, walk: Walk | None) -> tuple[Transition, Array, Array | None]:
    """Every move of the loop: the transition, the number for drawing its noise, and whether it goes up."""
    steps = transitions(sampler, grid)
    if walk is None:
        return steps, steps.index, None
    index = np.array(walk.index)
    return jax.tree.map(lambda leaf: leaf[index], steps), jnp.arange(len(index)), jnp.asarray(walk.up)


def _noised(x: Float[Array, "batch ..."], transition: Transition, key: BatchKey) -> Float[Array, "batch ..."]:
    """The state at t from that at s, with the noise between them: a draw of q(x_t | x_s)."""
    ratio = transition.alpha_t / transition.alpha_s
    std = jnp.sqrt(jnp.maximum(transition.sigma_t**2 - (ratio * transition.sigma_s) ** 2, 0.0))
    return ratio * x + std * key.fold_in("back").normal(x.shape[1:], x.dtype)


def _with_memory(denoiser: Denoiser, memory: Any, after: list[Any]) -> Denoiser:
    """A denoiser with its memory bound; its new memory is appended to `after`."""

    def denoise(xt: Array, t: Array, *s: Array) -> Prediction:
        prediction, left = denoiser(xt, t, *s, memory=memory)
        after.append(jax.tree.map(lambda x: as_compute(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, left))
        return prediction

    return denoise


def evaluation_times(sampler: Sampler, grid: TimeGrid) -> Float[np.ndarray, " evaluations"]:
    """The times at which a sampler calls the denoiser, in order; for an adaptive sampler, on data that is zero.

    They are found by running it on one number.
    """
    times: list[float] = []

    def zero(xt: Array, t: Array, *s: Array) -> Prediction:
        times.append(float(t))
        return Prediction.from_x0(grid.schedule, jnp.zeros_like(xt), xt, t)

    with jax.disable_jit():  # so that only the branches taken are called, with concrete numbers
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
    """Refuse a grid that starts at alpha = 0, for samplers that work with sigma / alpha."""
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
