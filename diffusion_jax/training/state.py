"""The training state: everything that a step changes, or needs and was not in the config, in one pytree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from diffusion_jax.training.ema import EmaConfig


@flax.struct.dataclass
class TrainState:
    """What one step turns into the next.

    Attributes:
      step: optimizer steps done.
      params: float32 parameters; those that belong to the objective are under "objective".
      opt_state: the optimizer's state.
      ema: averages of the parameters by name (see `EmaConfig.names`).
      nonfinite_step: the first step whose loss or gradient was not finite, or -1.
      target: the averaged parameters that the objective compares with, where it needs them, else None.
      teacher: the parameters of a frozen network to learn from, or None; they stay as they are.
      objective_state: the objective's own state, or None.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    ema: dict[str, Any]
    nonfinite_step: Int[Array, ""]
    target: Any = None
    teacher: Any = None
    objective_state: Any = None

    def evaluation_params(self, name: str = "") -> Any:
        """The parameters to evaluate: the named average, else the first average, else the parameters themselves."""
        if name == "params" or not self.ema:
            return self.params
        return self.ema[name or next(iter(self.ema))]


def create_state(
    init_params: Callable[[], Any],
    optimizer: optax.GradientTransformation,
    ema: EmaConfig,
    *,
    with_target: bool = False,
    teacher: Any = None,
    objective_state: Any = None,
) -> TrainState:
    """The state before the first step; a target starts at the parameters."""
    params = init_params()
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        ema=ema.init(params),
        nonfinite_step=jnp.int32(-1),
        target=jax.tree.map(jnp.copy, params) if with_target else None,
        teacher=teacher,
        objective_state=objective_state,
    )
