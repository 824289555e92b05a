"""What training minimises: a pure function of a denoiser, a batch and keys.

    loss, metrics = objective.loss(denoise_fn, batch, key)

`denoise_fn` is a Denoiser with parameters, conditioning and dropout bound, so an objective knows nothing of networks.
The loss is the mean over the examples it is given; whoever shards the batch averages over the shards. Random numbers
come from the per-example keys only, so an example's share of the loss does not depend on how the batch is split.
"""

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Float

from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Denoiser

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A training loss."""

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The scalar to differentiate, and the scalars to log, "loss" among them."""
        raise NotImplementedError


OBJECTIVES: Registry[Objective] = Registry("objective")
