"""How a model is sampled by default: as its run's config said, or as its authors do."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from diffusion_jax.objectives import Asking

Spec = str | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults for sampling.

    Attributes:
      sampler: name or {"name": ..., **options}, from `SAMPLERS`; None chooses one that fits the model.
      grid: name or options, from `GRIDS`.
      steps: steps of the sampler.
      most_steps: the most steps that the model was trained for; None if there is no limit.
      guidance: name or options, from `GUIDANCE`.
      clip_x0: whether predictions are clipped to [-1, 1].
      makes: what the network was trained to be, in the terms of `Sampler.denoiser_kind`.
      asking: how samplers call the network's denoiser.
    """

    sampler: Spec | None = None
    grid: Spec = "uniform"
    steps: int = 20
    most_steps: int | None = None
    guidance: Spec = "none"
    clip_x0: bool = False
    makes: Literal["denoiser", "consistency", "flow_map"] = "denoiser"
    asking: Asking = dataclasses.field(default_factory=Asking)
