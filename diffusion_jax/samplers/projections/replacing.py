"""Projections that put known values back after every step.

`replacement` (Song et al. 2021, arXiv:2011.13456, app. I.2): with z, the noise that sampling starts from,

    (1)   x_s <- alpha_s source + sigma_s z     outside the mask,

and the source itself after the last step. It is cheap and biased: the unknown part is drawn without regard to later
steps. Using the same z in all steps keeps the known part on one path.

`repaint` (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1): (1) with fresh noise in every step. After every
`jump_length` steps, these are undone by adding noise and taken again, `num_resamples` - 1 times, so that the two parts
can adapt to each other. More resamples make it less biased. The steps nearest to pure noise are taken once, as in the
authors' schedule.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.domains import Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.projections.known import Region
from diffusion_jax.samplers.projections.projection import PROJECTIONS, Projection
from diffusion_jax.samplers.sampler import Correction, Sampler, Transition, Walk
from diffusion_jax.schedulers import TimeGrid
from diffusion_jax.schedulers.arrays import as_compute


@PROJECTIONS.register("replacement")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement(Projection):
    """Eq. (1)."""

    of_region: ClassVar[bool] = True

    def after_step(self, known: Region, noise: Float[Array, "batch ..."]) -> Correction:
        def project(x: Float[Array, "batch ..."], transition: Transition, key: BatchKey | None) -> Array:
            return _put_back(known, x, noise, transition)

        return project


@PROJECTIONS.register("repaint", example={"num_resamples": 3, "jump_length": 2})
@dataclasses.dataclass(frozen=True, kw_only=True)
class RePaint(Projection):
    """Eq. (1) with fresh noise, and with repeated steps.

    Attributes:
      num_resamples: how often each step is taken, 10 in the paper.
      jump_length: steps that are undone at once, 10 of 250 in the paper.
    """

    of_region: ClassVar[bool] = True

    num_resamples: Annotated[int, Bounds(low=1, high=1000)] = 10
    jump_length: Annotated[int, Bounds(low=1, high=10_000)] = 1

    def check(self, sampler: Sampler, grid: TimeGrid) -> None:
        if self.jump_length >= grid.num_steps:
            raise UserError(
                f"projection repaint takes {self.jump_length} steps back, but the grid has {grid.num_steps}: take a "
                "smaller jump_length, or more steps"
            )
        super().check(sampler, grid)

    def after_step(self, known: Region, noise: Float[Array, "batch ..."]) -> Correction:
        def project(x: Float[Array, "batch ..."], transition: Transition, key: BatchKey | None) -> Array:
            return _put_back(known, x, key.fold_in("known").normal(x.shape[1:], x.dtype), transition)

        return project

    def walk(self, num_steps: int) -> Walk:
        """The authors' schedule of jumps: at every multiple of `jump_length` it goes back up, `num_resamples` - 1
        times."""
        left = dict.fromkeys(range(0, num_steps - self.jump_length, self.jump_length), self.num_resamples - 1)
        index, up, above = [], [], num_steps  # steps that remain above clean data
        while above > 0:
            above -= 1
            index.append(num_steps - 1 - above)
            up.append(False)
            if left.get(above, 0) > 0:
                left[above] -= 1
                for _ in range(self.jump_length):
                    index.append(num_steps - 1 - above)
                    up.append(True)
                    above += 1
        return Walk(index=tuple(index), up=tuple(up))


def _put_back(
    known: Region, x: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], transition: Transition
) -> Float[Array, "batch ..."]:
    """Eq. (1), and the source itself after the last step."""
    source = as_compute(known.source)
    noisy = transition.alpha_s * source + transition.sigma_s * noise
    return known.put_back(x, jnp.where(transition.is_last, source, noisy))
