"""The training state: everything that a step changes, or needs beyond the config, in one pytree."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from diffusion_jax.systems import split_groups
from diffusion_jax.training.ema import EmaConfig


@flax.struct.dataclass
class TrainState:
    """The value that a training step maps to the next one.

    Attributes:
      step: optimizer steps done.
      params: trained float32 parameters by group; those that belong to the objective are under "objective".
      opt_state: the optimizer's state.
      ema: averages of the parameters by name (see `EmaConfig.names`).
      nonfinite_step: the first step whose loss or gradient was not finite, or -1.
      target: the averaged parameters that the objective compares with, if it needs them, else None.
      teacher: the parameters of a frozen network to learn from, or None; they stay as they are.
      objective_state: the objective's own state, or None.
      frozen: the groups that are not trained, or None; they enter neither optimizer, nor averages, nor checkpoints.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    ema: dict[str, Any]
    nonfinite_step: Int[Array, ""]
    target: Any = None
    teacher: Any = None
    objective_state: Any = None
    frozen: Any = None

    def evaluation_params(self, name: str = "") -> Any:
        """The parameters to evaluate: the named average, else the first average, else the parameters themselves;
        together with the frozen groups."""
        trained = self.params if name == "params" or not self.ema else self.ema[name or next(iter(self.ema))]
        return self.whole(trained)

    def whole(self, trained: Any) -> Any:
        """Trained groups together with the frozen ones."""
        return {**trained, **self.frozen} if self.frozen else trained

    @property
    def saved(self) -> dict[str, Any]:
        """The content of a checkpoint by field: everything but the frozen groups, which come from elsewhere."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["frozen"]
        return fields


def create_state(
    init_params: Callable[[], Any],
    optimizer: optax.GradientTransformation,
    ema: EmaConfig,
    *,
    with_target: bool = False,
    teacher: Any = None,
    objective_state: Any = None,
    trained: Sequence[str] = (".*",),
) -> TrainState:
    """The state before the first step; a target starts at the parameters. `trained` are patterns of groups."""
    params, frozen = split_groups(init_params(), trained)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        ema=ema.init(params),
        nonfinite_step=jnp.int32(-1),
        target=jax.tree.map(jnp.copy, params) if with_target else None,
        teacher=teacher,
        objective_state=objective_state,
        frozen=frozen or None,
    )
