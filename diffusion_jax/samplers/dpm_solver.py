"""DPM-Solver++(2M): a second-order multistep solver with one evaluation per step.

Lu et al. 2022 (arXiv 2211.01095). With lambda = log(alpha / sigma) = log_snr / 2 as time and the data prediction x0,
the probability-flow ODE has the exact solution

    (1)   x_s = sigma_s / sigma_t x_t + sigma_s  integral_{lambda_t}^{lambda_s} e^lambda x0(lambda) d lambda.

Holding x0 constant gives the first-order step; putting the line through this and the previous prediction in its place
gives the second order (algorithm 2), at no further evaluation:

    (2)   h_i = lambda_{i+1} - lambda_i,      r_i = h_{i-1} / h_i,
    (3)   D_i = (1 + 1 / (2 r_i)) x0_i - 1 / (2 r_i) x0_{i-1},
    (4)   x_{i+1} = sigma_{i+1} / sigma_i x_i - alpha_{i+1} (e^{-h_i} - 1) D_i.

The first step has no previous prediction, and a step to clean data or from pure noise has no finite h; all of them are
first order: D_i = x0_i. At sigma_{i+1} = 0, (4) returns x0_i.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, Transition
from diffusion_jax.schedulers import Denoiser, TimeGrid


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "previous_x0"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultistepState:
    """The current xt and the data prediction of the step before, [batch, ...] each."""

    x: Float[Array, "batch ..."]
    previous_x0: Float[Array, "batch ..."]


@SAMPLERS.register("dpmpp_2m")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(Sampler):
    """Eq. (2) to (4)."""

    order: ClassVar[int] = 2

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        h = np.diff(0.5 * grid.log_snrs)
        half_inverse_r = np.zeros_like(h)
        second_order = np.isfinite(h[1:]) & np.isfinite(h[:-1])
        half_inverse_r[1:][second_order] = 0.5 * h[1:][second_order] / h[:-1][second_order]
        return {
            "decay": grid.sigmas[1:] / grid.sigmas[:-1],
            "gain": -grid.alphas[1:] * np.expm1(-h),
            "half_inverse_r": half_inverse_r,
        }

    def init(self, x: Float[Array, "batch ..."]) -> MultistepState:
        return MultistepState(x=x, previous_x0=jnp.zeros_like(x))

    def step(
        self, denoise: Denoiser, state: MultistepState, transition: Transition, key: BatchKey | None
    ) -> MultistepState:
        c = transition.constants
        x0 = denoise(state.x, transition.t).x0
        d = (1 + c["half_inverse_r"]) * x0 - c["half_inverse_r"] * state.previous_x0
        return MultistepState(x=c["decay"] * state.x + c["gain"] * d, previous_x0=x0)
