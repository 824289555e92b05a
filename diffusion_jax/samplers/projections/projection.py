"""The base of projections, which make a sampler draw data that agrees with known facts.

A projection may change three things: the denoiser, which becomes that of the posterior; the state after every step; and
the order of the steps. `sample_given` combines them with any sampler and with guidance.
"""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.projections.known import Known, Region
from diffusion_jax.samplers.sampler import Correction, Sampler, SampleResult, Walk, sample
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, TimeGrid
from diffusion_jax.schedulers.arrays import compute_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projection:
    """How the known data enters the sample; a subclass changes one or several things."""

    of_region: ClassVar[bool] = False
    """Whether it needs data known at certain places (`Region`), and not any linear measurement."""
    through_network: ClassVar[bool] = False
    """Whether it takes gradients through the denoiser, which must be that of the mean of x0."""

    def check(self, sampler: Sampler, grid: TimeGrid) -> None:
        """Check that the projection fits a sampler and its grid.

        Raises:
          UserError: they do not fit; the message names both.
        """
        name = name_of(self)
        if self.through_network and sampler.denoiser_kind != "denoiser":
            raise UserError(
                f"projection {name} needs the mean of x0, but sampler {type(sampler).__name__} asks a network that "
                "jumps: use projection replacement, or a model with a denoiser"
            )
        if self.through_network and grid.alphas[0] == 0:
            raise UserError(
                f"projection {name} divides by alpha, which is 0 at t = 1 of {type(grid.schedule).__name__}: use "
                "replacement or repaint, or a grid whose first time is below 1"
            )
        if self.walk(grid.num_steps) is not None and not sampler.one_step:
            raise UserError(
                f"projection {name} repeats steps, which sampler {type(sampler).__name__} cannot do, as it remembers "
                "earlier ones: use ddpm, ddim, euler or heun"
            )

    def denoiser(self, denoise: Denoiser, schedule: NoiseSchedule, known: Known) -> Denoiser:
        """The denoiser, given the known data."""
        return denoise

    def after_step(self, known: Known, noise: Float[Array, "batch ..."]) -> Correction | None:
        """The change to the state after every step; `noise` is the unit noise that sampling starts from."""
        return None

    def walk(self, num_steps: int) -> Walk | None:
        """The order of the steps; None: each step once."""
        return None


PROJECTIONS: Registry[Projection] = Registry("projection")


def name_of(projection: Projection) -> str:
    """The name under which a projection is registered."""
    found = (name for name in PROJECTIONS if PROJECTIONS[name] is type(projection))
    return next(found, type(projection).__name__)


def sample_given(
    projection: Projection,
    known: Known,
    sampler: Sampler,
    denoiser: Denoiser,
    grid: TimeGrid,
    noise: Float[Array, "batch ..."] | tuple[int, ...],
    key: BatchKey,
    **options: Any,
) -> SampleResult:
    """Draw samples that agree with known data; the arguments are those of `sample`.

    Raises:
      UserError: the projection does not fit the sampler, the grid or what is known.
    """
    projection.check(sampler, grid)
    if projection.of_region and not isinstance(known, Region):
        raise UserError(
            f"projection {name_of(projection)} puts known values back, but a measurement has none: use dps or pigdm"
        )
    if isinstance(noise, tuple):  # the same draw as in `sample`
        noise = key.fold_in("prior").normal(noise, compute_dtype())
    return sample(
        sampler,
        projection.denoiser(denoiser, grid.schedule, known),
        grid,
        noise,
        key,
        project=projection.after_step(known, noise),
        walk=projection.walk(grid.num_steps),
        **options,
    )


def network_evaluations(projection: Projection, sampler: Sampler, grid: TimeGrid) -> int:
    """Evaluations of the denoiser for one sample."""
    walk, size, ends = projection.walk(grid.num_steps), grid.num_steps, grid.ends_clean
    return sampler.nfe(size, ends_clean=ends) if walk is None else walk.nfe(sampler, size, ends_clean=ends)
