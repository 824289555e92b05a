"""The training state, the pure train step, the optimizer, EMA and checkpoints."""

from diffusion_jax.training.checkpointing import Checkpointer, CorruptCheckpointError
from diffusion_jax.training.ema import EmaConfig, post_hoc_coefficients, power_from_width
from diffusion_jax.training.first_stage import DISCRIMINATOR, FirstStage
from diffusion_jax.training.optimizer import OPTIMIZERS, in_turns, learning_rate_schedule, make_optimizer
from diffusion_jax.training.state import TrainState, create_state
from diffusion_jax.training.step import OBJECTIVE, Trainable, make_train_step, make_validation_step
from diffusion_jax.training.teaching import UNGUIDED
from diffusion_jax.training.trainer import TrainStep, train_step

__all__ = [
    "DISCRIMINATOR",
    "OBJECTIVE",
    "OPTIMIZERS",
    "UNGUIDED",
    "Checkpointer",
    "CorruptCheckpointError",
    "EmaConfig",
    "FirstStage",
    "TrainState",
    "TrainStep",
    "Trainable",
    "create_state",
    "in_turns",
    "learning_rate_schedule",
    "make_optimizer",
    "make_train_step",
    "make_validation_step",
    "post_hoc_coefficients",
    "power_from_width",
    "train_step",
]
