"""Samplers with given numbers instead of numbers from a grid: the steps of published schedulers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid

_ADAMS = ((1.0, 0.0, 0.0, 0.0), (3 / 2, -1 / 2, 0.0, 0.0), (23 / 12, -16 / 12, 5 / 12, 0.0),
          (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Sampler):
    """x_s = a x_t + b x0 + c noise + d z, z ~ N(0, I): DDIM, DDPM, LCM and TCD; a number for each transition."""

    xt: tuple[float, ...]
    x0: tuple[float, ...]
    noise: tuple[float, ...]
    fresh: tuple[float, ...]

    @property
    def stochastic(self) -> bool:
        return any(self.fresh)

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        return {name: np.array(getattr(self, name)) for name in ("xt", "x0", "noise", "fresh")}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants
        prediction = denoise(state.x, transition.t)
        x = c["xt"] * state.x + c["x0"] * prediction.x0 + c["noise"] * prediction.noise
        if self.stochastic:
            x = x + c["fresh"] * key.normal(x.shape[1:], x.dtype)
        return State(x=x)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "start", "history"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class LateState:
    """x; the state before the first transition; the last four predicted noises, the newest first."""

    x: Float[Array, "batch ..."]
    start: Float[Array, "batch ..."]
    history: Float[Array, "4 batch ..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatePNDM(Sampler):
    """PLMS as diffusers runs it from the middle of its list of steps, as image-to-image does.

    The list has its second step twice. Even if the list is cut after this step, diffusers treats the second evaluation
    as the repetition of the first transition. From there on the state is one transition behind the time that the
    network gets, and the last transition leads from the second-last level to the end.
    """

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        keep = grid.alphas[1:] / grid.alphas[:-1]
        step = grid.alphas[1:] * np.diff(grid.sigmas / grid.alphas)
        if len(keep) > 1:
            keep[1], step[1] = keep[0], step[0]
        order = np.clip(np.arange(len(keep)) - 1, 0, 3)
        return {"keep": keep, "step": step, "weights": np.array(_ADAMS)[order]}

    def init(self, x: Float[Array, "batch ..."]) -> LateState:
        return LateState(x=x, start=x, history=jnp.zeros((4, *x.shape), x.dtype))

    def step(self, denoise: Denoiser, state: LateState, transition: Transition, key: BatchKey | None) -> LateState:
        c, again = transition.constants, transition.index == 1
        noise = denoise(state.x, transition.t).noise
        added = jnp.concatenate([noise[None], state.history[:3]])
        mean = jnp.where(again, 0.5 * (noise + state.history[0]), jnp.tensordot(c["weights"], added, 1))
        x = c["keep"] * jnp.where(again, state.start, state.x) + c["step"] * mean
        return LateState(x=x, start=state.start, history=jnp.where(again, state.history, added))
