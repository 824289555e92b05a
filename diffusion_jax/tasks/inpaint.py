"""Inpainting: the part under a mask is drawn, the rest stays as it is.

An ordinary network does it by a projection. A network with channels for a mask and for the rest of the picture receives
both, and the projection is applied in addition. The last step, putting back the given data, is taken in the space of
the data: an autoencoder's round trip loses something, so otherwise nothing outside the mask would be exact.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers.projections import Projection, Region, Replacement, network_evaluations, sample_given
from diffusion_jax.specs import DATA, MASK
from diffusion_jax.systems import Params
from diffusion_jax.tasks.frame import TASKS, Request, Setting, Task


@TASKS.register("inpaint")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpaint(Task):
    """Draw the part under the mask.

    Attributes:
      projection: makes the sampler agree with the known part.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "mask")

    projection: Projection = dataclasses.field(default_factory=Replacement)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        self.projection.check(setting.sampler, setting.grid)

    def network_evaluations(self, setting: Setting) -> int:
        return setting.evaluations(network_evaluations(self.projection, setting.sampler, setting.grid))

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        source, size = setting.encode(params, request), key.index.shape[0]
        known = Region(mask=setting.mask(request), source=source)
        denoiser = setting.guided(params, request.asked, size, {DATA: request.image, MASK: request.mask})
        z = sample_given(
            *(self.projection, known, setting.sampler, denoiser, setting.grid, source.shape[1:], key),
            **setting.options,
        ).x0
        drawn = setting.model.decode(params, z)
        return jnp.where(request.mask > 0, drawn, request.image)
