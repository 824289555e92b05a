"""What a call depends on: Gaussian draws by name, and properties of a pipeline's networks."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.drawing import GivenNoise, unit_noise
from diffusion_jax.pipelines.families import Family
from diffusion_jax.pipelines.parts import Parts
from diffusion_jax.rng import BatchKey


@dataclasses.dataclass(frozen=True)
class Draws:
    """Gaussian draws by name: given, or from a seed."""

    seed: int
    given: Mapping[str, Array]

    def __post_init__(self):
        known = ("latents", "encode", "masked", "low", "steps")
        unknown = [name for name in self.given if name not in known]
        if unknown:
            raise UserError(f"draws has {unknown[0]!r}; it may have {', '.join(known)}")

    def get(self, name: str, index: np.ndarray, shape: tuple[int, ...]) -> Array:
        """Unit Gaussian draws [rows, *shape]; `index` numbers the pictures of each prompt."""
        if name in self.given:
            found = jnp.asarray(self.given[name], jnp.float32)
            if found.shape != (len(index), *shape):
                raise UserError(f"draws[{name!r}] must be {[len(index), *shape]}, it is {list(found.shape)}")
            return found
        return unit_noise(jax.random.key(self.seed), jnp.asarray(index), name, shape)

    def steps(self, index: np.ndarray) -> BatchKey:
        """The key of the sampler's steps."""
        key, index = jax.random.key(self.seed), jnp.asarray(index)
        if "steps" in self.given:
            return GivenNoise(key, index, len(index), jnp.asarray(self.given["steps"]))
        return BatchKey(key, index, len(index))


class Facts:
    """Properties of a pipeline's networks that a call depends on."""

    def __init__(self, parts: Parts, family: Family, *, has_image_prompts: bool = False):
        self.has_image_prompts = has_image_prompts
        models = parts.models
        self.network, self.codec = models[parts.network].module, models["vae"].module
        if family.edits == "reference":
            self.network = self.network.clone(has_reference=True)
        self.controls = tuple(models[name].module for name in parts.controlnets)
        self.takes = self.network.takes
        self.channels = self.network.image_channels
        self.told = self.takes["image"].shape[-1] if "image" in self.takes else 0
        self.has_unconditional = "unconditional_transformer" in models
        # a network that multiplies its time itself gets the flow's time, from 0 to 1
        self.time_unit = 1000.0 if self.has_unconditional else getattr(self.network, "time_scale", 1.0)
        self.is_edit = self.told == self.channels
        self.is_upscaler = "noise_level" in self.takes
        self.is_filler = self.told > self.channels
        self.edits = self.is_edit or self.is_upscaler or family.edits == "reference"
        self.scores_beauty = bool(parts.index.get("requires_aesthetics_score"))
        side = models[parts.network].config.get("sample_size")
        self.factor = self.codec.factor
        self.names_size = isinstance(side, int)
        self.side = side * self.factor if self.names_size else family.side
