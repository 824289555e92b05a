"""Predictor and corrector: a step of the reverse process after steps of Langevin dynamics at the same noise level.

Song et al. 2021 (arXiv 2011.13456), algorithms 2 to 5. At time t, with score = -noise / sigma,

    (1)   corrector:  x <- x + e score + sqrt(2 e) z,      e = 2 alpha_ts (snr |z| / |score|)^2,     num_corrections
    times,
    (2)   predictor:  "ancestral", x_s from q(x_s | x_t, x0) of `ddpm.py`, or
                      "reverse_diffusion", x_s = (2 - alpha_ts) x_t + sigma_ts^2 score + sigma_ts z,

where alpha_ts, sigma_ts^2 are those of q(x_t | x_s). For a variance-preserving schedule alpha_ts is sqrt(1 - beta), for
a variance-exploding one it is 1. The norms in (1) are per example; the paper takes their means over the batch, which
would make a sample depend on its neighbours. The transition to clean data returns the predicted x0.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.sampler import SAMPLERS, Sampler, State, Transition
from diffusion_jax.schedulers import Denoiser, ReverseSteps, TimeGrid


@SAMPLERS.register("predictor_corrector", example={"corrector": "annealed"})
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler):
    """Eq. (1), (2); `snr` as in the paper, 0.16 for its VE models.

    `corrector` "annealed" replaces |z| / |score| by sigma_t, to which it is equal in many dimensions (the paper's
    annealed Langevin dynamics); in few dimensions the norm of the score can come near zero, and "langevin" fails.
    """

    predictor: Literal["ancestral", "reverse_diffusion"] = "reverse_diffusion"
    corrector: Literal["langevin", "annealed"] = "langevin"
    snr: float = 0.16
    num_corrections: int = 1

    def __post_init__(self):
        known = self.predictor in ("ancestral", "reverse_diffusion") and self.corrector in ("langevin", "annealed")
        if not known or self.snr <= 0 or self.num_corrections < 0:
            raise UserError(
                "sampler predictor_corrector takes predictor 'ancestral' or 'reverse_diffusion', corrector 'langevin' "
                f"or 'annealed', snr > 0 and num_corrections >= 0, got {self}"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def asks_in_loops(self) -> bool:
        return self.num_corrections > 0

    def nfe(self, num_steps: int, *, ends_clean: bool = True) -> int:
        return num_steps * (1 + self.num_corrections)

    def constants(self, grid: TimeGrid) -> dict[str, np.ndarray]:
        steps, noisy = ReverseSteps.of(grid), grid.sigmas[1:] > 0
        ratio = grid.alphas[:-1] / grid.alphas[1:]
        kept, x0, noise = steps.mean_xt, steps.mean_x0, np.zeros_like(ratio)
        std = np.sqrt(np.where(noisy, steps.small, 0.0))
        if self.predictor == "reverse_diffusion":
            kept, x0 = np.where(noisy, 2.0 - ratio, 0.0), np.where(noisy, 0.0, 1.0)
            noise = np.where(noisy, -steps.large / grid.sigmas[:-1], 0.0)
            std = np.sqrt(np.where(noisy, steps.large, 0.0))
        return {"kept": kept, "x0": x0, "noise": noise, "std": std, "ratio": ratio}

    def step(self, denoise: Denoiser, state: State, transition: Transition, key: BatchKey | None) -> State:
        c = transition.constants

        def correct(i: int, x: Array) -> Array:
            z = key.fold_in("corrector").at_step(i).normal(x.shape[1:], x.dtype)
            noise, scale = denoise(x, transition.t).noise, transition.sigma_t  # the score is -noise / sigma_t
            if self.corrector == "langevin":
                scale = _norm(z) / jnp.maximum(_norm(noise) / transition.sigma_t, 1e-12)
            step = 2.0 * c["ratio"] * (self.snr * scale) ** 2
            return langevin_step(x, -noise / transition.sigma_t, step, z)

        x = jax.lax.fori_loop(0, self.num_corrections, correct, state.x) if self.num_corrections else state.x
        prediction = denoise(x, transition.t)

        def mean() -> Array:
            return c["kept"] * x + c["x0"] * prediction.x0 + c["noise"] * prediction.noise

        def noisy() -> Array:
            return mean() + c["std"] * key.normal(x.shape[1:], x.dtype)

        # The last step draws nothing; without the cond, both moves would be fused into one slow pointwise kernel.
        return State(x=jax.lax.cond(c["std"] > 0, noisy, mean))


def langevin_step(
    x: Float[Array, "batch ..."], score: Float[Array, "batch ..."], step: Array | float, z: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """x + step score + sqrt(2 step) z: one step of Langevin dynamics."""
    return x + step * score + jnp.sqrt(2.0 * step) * z


def _norm(x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """The norm of every example, with axes of size 1 for the rest."""
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))
