"""Optimizers from Optax by name, with the learning-rate schedules and the gradient clipping of the papers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry, unknown_name

OPTIMIZERS: Registry[optax.GradientTransformation] = Registry("optimizer")


@OPTIMIZERS.register("adam")
def adam(learning_rate: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Adam (Kingma & Ba 2015)."""
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


@OPTIMIZERS.register("adamw")
def adamw(
    learning_rate: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
):
    """AdamW (Loshchilov & Hutter 2019); the decay is multiplied by the learning rate."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


@OPTIMIZERS.register("radam")
def radam(learning_rate: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Rectified Adam (Liu et al. 2020), as used for consistency models."""
    return optax.radam(learning_rate, b1=b1, b2=b2, eps=eps)


@OPTIMIZERS.register("muon")
def muon(
    learning_rate: optax.Schedule,
    momentum: float = 0.95,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
):
    """Muon (Jordan et al. 2024) for all kernels, AdamW with Nesterov momentum for the other parameters.

    A kernel moves by the orthogonal factor of its momentum, found by five Newton-Schulz iterations. The factor is
    scaled to a root mean square of about 0.2 (Liu et al. 2025, arXiv:2502.16982, section 2.2), which is that of Adam,
    so one learning rate serves all parameters. A convolution's kernel counts as a matrix [height * width * in, out];
    each layer of a stack has a matrix of its own.
    """
    return optax.contrib.muon(
        learning_rate,
        beta=momentum,
        eps=eps,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=weight_decay,
        adam_learning_rate=learning_rate,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(_matrix_axes, params),
        consistent_rms=0.2,
    )


def _matrix_axes(path: tuple[Any, ...], x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter are rows and columns of a matrix, and which count layers; None: it is not a kernel."""
    if path[-1:] != (jax.tree_util.DictKey("kernel"),) or x.ndim < 2:
        return None
    inputs = (-4, -3, -2) if x.ndim >= 4 else (-2,)
    return optax.contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=(-1,))


@OPTIMIZERS.register("sgd")
def sgd(learning_rate: optax.Schedule, momentum: float = 0.0):
    """Stochastic gradient descent."""
    return optax.sgd(learning_rate, momentum=momentum or None)


def learning_rate_schedule(
    peak: float, *, decay: str, warmup_steps: int, total_steps: int, decay_steps: int = 0
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak` over `warmup_steps`, then `decay`.

    The first step already has a rate above 0: step n warms up at (n + 1) / warmup_steps.

    Args:
      peak: the highest rate.
      decay: "constant", "cosine" or "linear" (both to 0 at the end), or "inverse_sqrt": peak / sqrt(max(n /
        decay_steps, 1)) at step n, counted from the beginning (Karras et al. 2024, EDM2, equation 67).
      warmup_steps: steps of the warm-up; 0 for none.
      total_steps: steps of the whole training.
      decay_steps: the step at which "inverse_sqrt" starts to decrease.
    """
    if decay == "constant":
        after = optax.constant_schedule(peak)
    elif decay == "cosine":
        after = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    elif decay == "linear":
        after = optax.linear_schedule(peak, 0.0, max(total_steps - warmup_steps, 1))
    elif decay == "inverse_sqrt":
        if decay_steps < 1:
            raise UserError(
                "optimizer.decay=inverse_sqrt needs optimizer.decay_steps > 0: where the rate begins to fall"
            )

        def after(count):  # counted from the end of the warm-up
            return peak / jnp.sqrt(jnp.maximum((count + warmup_steps) / decay_steps, 1))
    else:
        raise UserError(unknown_name("learning-rate schedule", decay, ["constant", "cosine", "linear", "inverse_sqrt"]))
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1) if warmup_steps > 1 else after
    return optax.join_schedules([warmup, after], [warmup_steps])


def in_turns(optimizer: optax.GradientTransformation, every: int, always: str) -> optax.GradientTransformation:
    """An optimizer for networks that alternate: one group is updated in every step, all others in one of `every` steps.

    Each side has its own state, including clipping and learning rate, which does not change while it pauses; the others
    start with the first step.

    Args:
      optimizer: optimizer for both sides.
      every: steps between updates of the others.
      always: the name of the group that is updated in every step.
    """

    def sides(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {always: tree[always]}, {name: part for name, part in tree.items() if name != always}

    def init(params: Mapping[str, Any]) -> dict[str, Any]:
        ours, others = sides(params)
        return {"count": jnp.int32(0), "always": optimizer.init(ours), "turns": optimizer.init(others)}

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        pairs = zip(sides(gradient), (state["always"], state["turns"]), sides(params), strict=True)
        (ours, kept), (others, moved) = (optimizer.update(*pair) for pair in pairs)
        is_turn = state["count"] % every == 0
        others = jax.tree.map(lambda x: jnp.where(is_turn, x, jnp.zeros_like(x)), others)
        moved = jax.tree.map(lambda new, old: jnp.where(is_turn, new, old), moved, state["turns"])
        return {**ours, **others}, {"count": state["count"] + 1, "always": kept, "turns": moved}

    return optax.GradientTransformation(init, update)


def make_optimizer(
    spec: Mapping[str, Any],
    *,
    learning_rate: optax.Schedule,
    clip_norm: float = 0.0,
    is_frozen: Callable[[tuple[Any, ...]], bool] = lambda path: False,
) -> optax.GradientTransformation:
    """The named optimizer after clipping of the gradient's global norm (0: no clipping).

    Parameters at a path for which `is_frozen` holds are constants: even weight decay leaves them unchanged.
    """
    optimizer = OPTIMIZERS.build(spec, learning_rate=learning_rate)
    clipped = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer

    def update(gradient, state, params=None):
        updates, state = clipped.update(gradient, state, params)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if is_frozen(path) else x, updates
        ), state

    return optax.GradientTransformation(clipped.init, update)
