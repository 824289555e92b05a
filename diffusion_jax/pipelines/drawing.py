"""From noise and conditions to latents: one compiled program for a network, a walk, a form of guidance and a shape.

Nothing here depends on prompts or files. Every row of a batch is computed independently of the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.models.controlnet import scaled_control, summed_controls
from diffusion_jax.pipelines.scheduling import Walk
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import Transition, sample
from diffusion_jax.samplers.guidance import Rule, extrapolated, extrapolated_twice, guided, rescaled
from diffusion_jax.schedulers import Denoiser, Prediction
from diffusion_jax.schedulers.arrays import as_compute, compute_dtype

Params = Mapping[str, Any]
Rows = tuple[Mapping[str, Array], ...]
"""The conditions of each evaluation of the network; the first are those asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """A ControlNet beside the network.

    Attributes:
      network: the ControlNet; its parameters are the group "controlnet", in the same place.
      evaluations: whether each evaluation of the network is steered.
      guess_mode: whether residuals are scaled by depth.
    """

    network: nn.Module
    evaluations: tuple[bool, ...]
    guess_mode: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a compiled program.

    Attributes:
      network: the denoiser.
      walk: sampler and noise levels.
      guidance: the rule that combines the predictions of the evaluations; None: the scales of each step combine their
        outputs, as in the published pipelines.
      unconditional: another network for the last evaluation, with the group "unconditional"; None: the same one.
      skipping: the network without some layers, with the same parameters, for skip-layer guidance; None: there is none.
      controls: the ControlNets.
      fills: whether the part outside a mask is restored after every step.
      time_unit: the network gets the walk's time divided by it.
      reversed_flow: whether the network gets 1 - t, and its output is the velocity from noise to data.
      trajectory: whether all states are kept.
      on_step: called on the host with the number of every finished step; None: no call.
    """

    network: nn.Module
    walk: Walk
    guidance: Rule | None = None
    unconditional: nn.Module | None = None
    skipping: nn.Module | None = None
    controls: tuple[Control, ...] = ()
    fills: bool = False
    time_unit: float = 1.0
    reversed_flow: bool = False
    trajectory: bool = False
    on_step: Callable[[int], None] | None = None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "numbers", "mask", "source", "source_noise", "pictures"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs of a compiled program.

    Attributes:
      rows: the conditions, for each evaluation.
      numbers: values by step [N]: "scale" and "rescale" of guidance, "image_scale", "skip_scale", and "control_<i>".
      mask: 1 where the picture is drawn, [batch, h, w, 1].
      source, source_noise: latents that stay outside the mask, and the noise that is added to them.
      pictures: the picture of each ControlNet, [batch, height, width, 3].
    """

    rows: Rows
    numbers: Mapping[str, Float[Array, " steps"]]
    mask: Array | None = None
    source: Array | None = None
    source_noise: Array | None = None
    pictures: tuple[Array, ...] = ()


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key", "index", "noise"], meta_fields=["size"])
@dataclasses.dataclass(frozen=True)
class GivenNoise(BatchKey):
    """A key of sampler steps whose draws are given, [steps, batch, ...]."""

    noise: Array | None = None

    def fold_in(self, name: str) -> "GivenNoise":
        return self

    def counter_based(self) -> "GivenNoise":
        return self

    def at_step(self, step: int | Array) -> "GivenNoise":
        return dataclasses.replace(self, noise=self.noise[step])

    def normal(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return self.noise


def unit_noise(key: Key[Array, ""], index: Array, name: str, shape: tuple[int, ...]) -> Array:
    """Unit Gaussian draws for rows `index` and the use `name`, [batch, *shape]."""
    return BatchKey(key, index, len(index)).fold_in(name).normal(shape, compute_dtype())


@functools.partial(jax.jit, static_argnames=("plan",))
def draw(
    plan: Plan, params: Params, given: Given, start: Float[Array, "batch h w c"], key: BatchKey
) -> tuple[Array, Array | None]:
    """The latents at the end of a walk, from the state at its start; and all states, if the plan keeps them."""
    walk = plan.walk

    denoise = _by_scales(plan, params, given)
    if plan.guidance is not None:
        denoise = _by_rule(plan, params, given, len(start))

    def project(x: Array, transition: Transition, _: BatchKey | None) -> Array:
        if plan.on_step is not None:
            jax.debug.callback(plan.on_step, transition.index, ordered=False)
        if not plan.fills:
            return x
        noised = transition.alpha_s * given.source + transition.sigma_s * given.source_noise
        known = jnp.where(transition.is_last, given.source, noised)
        return (1.0 - given.mask) * known + given.mask * x

    watches = plan.fills or plan.on_step is not None
    found = sample(
        walk.sampler,
        denoise,
        walk.grid,
        start / walk.process.schedule.prior_std,
        key,
        x0_transform=(lambda x0: jnp.clip(x0, -1.0, 1.0)) if walk.clip_x0 else None,
        project=project if watches else None,
        memory=plan.guidance.first_memory if plan.guidance is not None and plan.guidance.remembers else None,
        return_trajectory=plan.trajectory,
    )
    z = found.x0 / walk.grid.alphas[-1] if walk.unscaled else found.x0
    return z, found.trajectory


def _by_scales(plan: Plan, params: Params, given: Given) -> Denoiser:
    """The denoiser whose outputs are guided by the scales of each step."""

    def denoise(xt: Array, t: Array) -> Prediction:
        x, time, step = _inputs(plan, xt, t)
        return _predicted(plan, _leaned(plan, params, given, x, time, _numbers(given, step)), xt, t)

    return denoise


def _by_rule(plan: Plan, params: Params, given: Given, batch: int) -> Denoiser:
    """The denoiser of a rule of guidance."""

    def denoise(xt: Array, t: Array, told: Mapping[str, Array]) -> Prediction:
        x, time, step = _inputs(plan, xt, t)
        output = _evaluated(plan, params, given, x, time, told, len(xt) // batch, _numbers(given, step))
        return _predicted(plan, output, xt, t)

    schedule = plan.walk.process.schedule
    return guided(plan.guidance, denoise, given.rows[0], schedule=schedule, null=given.rows[-1])


def _inputs(plan: Plan, xt: Array, t: Array) -> tuple[Array, Array, Array]:
    """The network's input x and time, and the number of the step."""
    walk = plan.walk
    step = jnp.minimum(jnp.sum(as_compute(walk.grid.times) > t), walk.grid.num_steps - 1)
    x, time = walk.process.network_inputs(xt, t)
    time = time / plan.time_unit
    return x, 1.0 - time if plan.reversed_flow else time, step


def _predicted(plan: Plan, output: Array, xt: Array, t: Array) -> Prediction:
    return plan.walk.process.prediction_of(-output if plan.reversed_flow else output, xt, t)


def _numbers(given: Given, step: Array) -> Mapping[str, Array]:
    return {name: values[step] for name, values in given.numbers.items()}


def _leaned(plan: Plan, params: Params, given: Given, x: Array, time: Array, numbers: Mapping[str, Array]) -> Array:
    """The network's output, or several outputs combined by the scales of a step."""
    rows = given.rows
    if plan.unconditional is not None:
        own = plan.network.apply({"params": params["network"]}, x, time, rows[0])
        other = plan.unconditional.apply({"params": params["unconditional"]}, x, time, rows[1])
        outputs = [own, other]
    else:
        count = len(rows)
        told, x_all, time_all = _interleaved(rows), _interleaved([x] * count), _interleaved([time] * count)
        output = _evaluated(plan, params, given, x_all, time_all, told, count, numbers)
        apart = output.reshape(-1, count, *output.shape[1:])
        outputs = [apart[:, i] for i in range(count)]
    found = _combined(outputs, numbers)
    if plan.skipping is None:
        return found

    def further() -> Array:
        skipped = plan.skipping.apply({"params": params["network"]}, x, time, rows[0])
        return found + numbers["skip_scale"] * (outputs[0] - skipped)

    return jax.lax.cond(numbers["skip_scale"] != 0.0, further, lambda: found)


def _evaluated(
    plan: Plan, params: Params, given: Given, x: Array, time: Array, told: Mapping[str, Array], count: int,
    numbers: Mapping[str, Array],
) -> Array:  # fmt: skip
    """The output of one call of the network for `count` evaluations of each example, with interleaved rows."""
    if plan.controls:
        told = {**told, "control": _control(plan, params, given, told, x, time, count, numbers)}
    return plan.network.apply({"params": params["network"]}, x, time, told)


def _control(
    plan: Plan, params: Params, given: Given, told: Mapping[str, Array], x: Array, time: Array, count: int,
    numbers: Mapping[str, Array],
) -> Mapping[str, Any]:  # fmt: skip
    """The sum of the ControlNets' residuals."""
    found = []
    for number, control in enumerate(plan.controls):
        own = {name: value for name, value in told.items() if name in control.network.takes}
        own["control_image"] = _interleaved([given.pictures[number]] * count)
        residuals = control.network.apply({"params": params["controlnet"][number]}, x, time, own)
        residuals = scaled_control(residuals, numbers[f"control_{number}"], guess_mode=control.guess_mode)
        if not all(control.evaluations[:count]):
            on = jnp.tile(jnp.array(control.evaluations[:count], jnp.float32), x.shape[0] // count)
            residuals = jax.tree.map(lambda r, on=on: r * on.reshape(-1, *(1,) * (r.ndim - 1)), residuals)
        found.append(residuals)
    return summed_controls(found)


def _combined(outputs: list[Array], numbers: Mapping[str, Array]) -> Array:
    """One output: the only one, or guided away from a second, or with two scales away from two others."""
    if len(outputs) == 1:
        return outputs[0]
    if len(outputs) == 3:
        return extrapolated_twice(*outputs, numbers["scale"], numbers["image_scale"])
    asked, nothing = outputs
    found = extrapolated(nothing, asked, numbers["scale"])
    return rescaled(found, asked, numbers["rescale"]) if "rescale" in numbers else found


def _interleaved(rows: Any) -> Any:
    """Rows a_0, b_0, ..., a_1, b_1, ... of trees, so that all rows of an example stay on its device."""
    if len(rows) == 1:
        return rows[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), *rows)
