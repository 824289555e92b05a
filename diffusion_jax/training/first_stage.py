"""Training of a first stage: the alternative to `Trainable`, with the same step, loop and checkpoints.

params = {"codec": ..., "discriminator": ...}       the second only with an adversarial loss
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Key

from diffusion_jax.models.autoencoders import LearnedCodec
from diffusion_jax.objectives.reconstruction import ReconstructionLoss
from diffusion_jax.rng import BatchKey, fold_name
from diffusion_jax.specs import DATA, DataSpec
from diffusion_jax.systems import CODEC, Params
from diffusion_jax.training.state import TrainState

DISCRIMINATOR = "discriminator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A codec and its loss.

    Attributes:
      data: the form of the pictures.
      codec: the codec to train.
      objective: the loss.

    Raises:
      UserError: the codec or the loss does not accept such pictures.
    """

    data: DataSpec
    codec: LearnedCodec
    objective: ReconstructionLoss

    def __post_init__(self):
        self.codec.spec(self.data)
        self.objective.check(self.data.shape)

    def init_params(self, key: Key[Array, ""], init_network: Callable[..., Any] | None = None) -> Params:
        """Parameters by group; `init_network`, which other kinds of model use, is ignored here."""
        discriminator = self.objective.init_params(fold_name(key, DISCRIMINATOR), self.data.shape)
        own = {} if discriminator is None else {DISCRIMINATOR: discriminator}
        return {CODEC: self.codec.init_params(fold_name(key, CODEC)), **own}

    def constrain(self, params: Params) -> Params:
        """The parameters after an update, unchanged."""
        return params

    def loss(
        self, params: Params, state: TrainState, batch: dict[str, Array], key: BatchKey
    ) -> tuple[Float[Array, ""], Any]:
        """The training loss, and (metrics, None)."""
        keys = key.fold_in(CODEC).per_example()
        return self._loss(params, params.get(DISCRIMINATOR), state, batch, keys)

    def validation_loss(
        self, params: Params, state: TrainState, batch: dict[str, Array], key: BatchKey
    ) -> tuple[Float[Array, ""], Any]:
        """The loss without noise in the latents and without a discriminator, which decreases as reconstructions
        improve."""
        return self._loss(params, None, state, batch, None)

    def _loss(self, params, discriminator, state, batch, keys):
        loss, metrics = self.objective.loss(
            self.codec, params[CODEC], discriminator, batch[DATA], keys, step=state.step, state=state.objective_state
        )
        return loss, (metrics, {})
