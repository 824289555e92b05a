"""Other versions of given data: `edit` changes what it shows, `variation` draws it again, `instruct` follows words.

`edit` and `variation` work with any network and begin at the time `strength`: a smaller one keeps more of the data.
`edit` starts from the noise that gives the data under its own description, so that whatever the new condition does not
change stays the same; `variation` starts from the data with fresh noise (SDEdit). `instruct` starts from noise, and a
network trained for it sees the data beside its input (InstructPix2Pix, Brooks et al. 2022, arXiv:2211.09800).
"""

import dataclasses
from typing import Annotated, ClassVar

from jaxtyping import Array, Float

from diffusion_jax.domains import Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import sample
from diffusion_jax.samplers.editing import DDIMInversion, Inversion, edit, sdedit, up_to
from diffusion_jax.specs import SOURCE
from diffusion_jax.systems import Params
from diffusion_jax.tasks.frame import TASKS, Request, Setting, Task

Strength = Annotated[float, Bounds(low=0, high=1, above=True)]


@TASKS.register("edit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(Task):
    """Invert with what the data is, sample with what it shall be.

    Attributes:
      inversion: finds the noise.
      strength: the time up to which the data is inverted.
    """

    needs: ClassVar[tuple[str, ...]] = ("image",)

    inversion: Inversion = dataclasses.field(default_factory=DDIMInversion)
    strength: Strength = 1.0

    def check(self, setting: Setting) -> None:
        super().check(setting)
        self.require_denoiser(setting)
        self.inversion.check(up_to(setting.grid, self.strength))
        if setting.sampler.stochastic:
            raise UserError(
                f"task edit returns along the flow, but sampler {type(setting.sampler).__name__} draws noise: use "
                f"{self.inversion.sampler} or heun"
            )

    def network_evaluations(self, setting: Setting) -> int:
        part = up_to(setting.grid, self.strength)
        there = self.inversion.nfe(part.num_steps)
        return there + super().network_evaluations(dataclasses.replace(setting, grid=part))

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        x0, size = setting.encode(params, request), key.index.shape[0]
        source = setting.plain(params, request.source, size)
        target = setting.guided(params, request.asked, size)
        options = {"strength": self.strength, **setting.options}
        z = edit(setting.sampler, self.inversion, source, target, setting.grid, x0, key, **options).x0
        return setting.model.decode(params, z)


@TASKS.register("variation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variation(Task):
    """Add noise up to the time `strength`, and sample from there."""

    needs: ClassVar[tuple[str, ...]] = ("image",)

    strength: Strength = 0.5

    def check(self, setting: Setting) -> None:
        super().check(setting)
        up_to(setting.grid, self.strength)

    def network_evaluations(self, setting: Setting) -> int:
        return super().network_evaluations(dataclasses.replace(setting, grid=up_to(setting.grid, self.strength)))

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        x0, size = setting.encode(params, request), key.index.shape[0]
        denoiser = setting.guided(params, request.asked, size)
        options = {"strength": self.strength, **setting.options}
        z = sdedit(setting.sampler, denoiser, setting.grid, x0, key, **options).x0
        return setting.model.decode(params, z)


@TASKS.register("instruct")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruct(Task):
    """Apply an instruction to the data, with a network that takes both as conditions."""

    needs: ClassVar[tuple[str, ...]] = ("image",)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if SOURCE not in {name for part in setting.model.conditioning.parts for name in part.reads}:
            raise UserError(
                "task instruct needs a network that sees the picture to be edited (conditioning.picture of a config, "
                "name source), and this one does not: use edit or variation"
            )

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        denoiser = setting.guided(params, request.asked, key.index.shape[0], {SOURCE: request.image})
        z = sample(setting.sampler, denoiser, setting.grid, setting.model.diffused.shape, key, **setting.options).x0
        return setting.model.decode(params, z)
