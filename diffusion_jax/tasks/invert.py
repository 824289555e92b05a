"""Data to the noise that gives it, and noise to data: two tasks that undo each other."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import sample
from diffusion_jax.samplers.editing import DDIMInversion, Inversion
from diffusion_jax.systems import Params
from diffusion_jax.tasks.frame import TASKS, Request, Setting, Task


@TASKS.register("invert")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert(Task):
    """Find the noise from which sampling, with the same conditions and without guidance, gives the data.

    Attributes:
      inversion: finds the noise.
    """

    needs: ClassVar[tuple[str, ...]] = ("image",)
    gives: ClassVar[str] = "latents"

    inversion: Inversion = dataclasses.field(default_factory=DDIMInversion)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        self.require_denoiser(setting)
        self.inversion.check(setting.grid)

    def network_evaluations(self, setting: Setting) -> int:
        return self.inversion.nfe(setting.grid.num_steps)

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        x0 = setting.encode(params, request)
        denoiser = setting.plain(params, request.asked, key.index.shape[0])
        return self.inversion(denoiser, setting.grid, x0).noise


@TASKS.register("from_latents")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FromLatents(Task):
    """Sampling that starts from given noise."""

    needs: ClassVar[tuple[str, ...]] = ("latents",)

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        denoiser = setting.guided(params, request.asked, key.index.shape[0])
        z = sample(setting.sampler, denoiser, setting.grid, request.latents, key, **setting.options).x0
        return setting.model.decode(params, z)
