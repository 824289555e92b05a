"""Adaptive Runge-Kutta of order 5(4) for a batch whose examples take their own steps; by Diffrax, inside jit.

Diffrax integrates one initial value with one step size. Here its method steps the whole batch from 0 to 1; each
example's own step length multiplies the right side, which is called once for the batch. Its controller then judges
every example by itself, so an example's result does not depend on its neighbours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

STAGES = 6
"""Evaluations per step of Dormand and Prince's method; the seventh is reused as the first of the next step."""


def integrate(
    slopes: Callable[[Any, Float[Array, " batch"]], Any],
    start: Any,
    first: Float[Array, ""],
    last: Float[Array, ""],
    *,
    rtol: float,
    atol: float,
    first_step: float = 0.05,
    max_steps: int = 4096,
) -> tuple[Any, Int[Array, ""]]:
    """Solve dy/du = slopes(y, u) from u = first to u = last.

    Args:
      slopes: (y, u) -> dy/du, with u [batch] and every leaf of y [batch, ...].
      start: y at `first`.
      first: where to begin; larger or smaller than `last`.
      last: where to end.
      rtol: tolerance relative to y.
      atol: absolute tolerance.
      first_step: the share of the interval that is tried first.
      max_steps: the largest number of steps; y is NaN if more are needed.

    Returns:
      y at `last`, and the evaluations of `slopes` that the slowest example needed.
    """
    import diffrax  # imported here, as it would cost every command a second

    size = jax.tree.leaves(start)[0].shape[0]
    length = last - first

    def scaled(tree: Any, factors: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf * factors.reshape(-1, *(1,) * (leaf.ndim - 1)), tree)

    def chosen(keep: Array, new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(keep.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)

    def slope(p: Array, y: Any) -> Any:
        """dy/dp, where the progress p in [0, 1] increases whatever the direction of u."""
        return jax.tree.map(lambda d: length * d, slopes(y, first + p * length))

    # A step from p to p + dp, as one from 0 to 1.
    term = diffrax.ODETerm(lambda part, y, at: scaled(slope(at[0] + part * at[1], y), at[1]))
    solver, controller = diffrax.Dopri5(), diffrax.PIDController(rtol=rtol, atol=atol)
    order = solver.error_order(term)
    zero, one = jnp.zeros_like(first), jnp.ones_like(first)

    def judge(p: Array, p_next: Array, y: Any, y_next: Any, error: Any, controller_state: Any) -> tuple[Any, ...]:
        """For one example: whether the step is accepted, and the next step."""
        keep, p, p_next, _, controller_state, _ = controller.adapt_step_size(
            p, p_next, y, y_next, None, error, order, controller_state
        )
        return keep, p, p_next, controller_state

    def more(carry: tuple[Any, ...]) -> Array:
        return jnp.any(carry[0] < 1) & (carry[-1] < max_steps)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        p, p_next, y, f, controller_state, steps = carry
        under_way = p < 1
        p_next = jnp.minimum(p_next, 1.0)
        dp = p_next - p
        # The state of the method is (whether to evaluate the first slope, which is not needed; that slope).
        y_next, error, _, (_, f_next), _ = solver.step(
            term, zero, one, y, (p, dp), (jnp.array(False), scaled(f, dp)), made_jump=False
        )
        f_next = scaled(f_next, 1 / jnp.where(under_way, dp, 1.0))
        keep, *moved = jax.vmap(judge)(p, p_next, y, y_next, error, controller_state)
        y, f = chosen(keep & under_way, (y_next, f_next), (y, f))
        p, p_next, controller_state = chosen(under_way, tuple(moved), (p, p_next, controller_state))
        return p, p_next, y, f, controller_state, steps + 1

    def begin(y: Any) -> tuple[Array, Any]:
        return controller.init(term, zero, one, y, jnp.full_like(first, first_step), None, solver.func, order)

    # Diffrax's own loop calls the host to raise errors and cannot be exported, hence this one.
    p = jnp.zeros((size,), first.dtype)
    p_next, controller_state = jax.vmap(begin)(start)
    carry = (p, p_next, start, slope(p, start), controller_state, jnp.int32(0))
    p, _, y, _, _, steps = jax.lax.while_loop(more, step, carry)
    return chosen(p >= 1, y, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), y)), 1 + STAGES * steps
