"""Adaptive Runge-Kutta of order 5(4) for a batch of which every example takes its own steps; by Diffrax, inside jit.

Diffrax's solvers integrate one initial value. Under `vmap` each example of a batch gets its own loop, in lockstep with
the others; `integrate` arranges that a right side written for whole batches, which has a network in it, is then called
once for the batch and not once for every example. What an example becomes does not depend on its neighbours.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

STAGES = 6
"""Evaluations per step of Dormand and Prince's method; the seventh is the first of the next step."""


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
      first_step: the share of the way that is tried first.
      max_steps: the most steps; where they do not suffice y is NaN.

    Returns:
      y at `last`, and the evaluations of `slopes` that the slowest example needed.
    """
    size = jax.tree.leaves(start)[0].shape[0]
    slope, captured = _for_one_example(slopes, start, jnp.zeros((size,), first.dtype))
    length = last - first
    # Progress p in [0, 1] is the solver's time, so that it runs forwards.
    term = diffrax.ODETerm(lambda p, y, args: jax.tree.map(lambda d: length * d, slope(y, first + p * length, *args)))
    solver, controller = diffrax.Dopri5(), diffrax.PIDController(rtol=rtol, atol=atol)
    order = solver.error_order(term)
    zero, one = jnp.zeros_like(first), jnp.ones_like(first)

    def solve(y: Any) -> tuple[Any, Array]:
        """One example. Diffrax's own loop calls back to the host to raise errors, and can not be exported: so ours."""
        begin = jnp.full_like(first, first_step)
        second, controller_state = controller.init(term, zero, one, y, begin, captured, solver.func, order)
        solver_state = solver.init(term, zero, second, y, captured)

        def more(carry) -> Array:
            return (carry[0] < 1) & (carry[-1] < max_steps)

        def step(carry):
            p, p_next, y, solver_state, controller_state, steps = carry
            p_next = jnp.minimum(p_next, 1.0)
            y_next, error, _, new_solver_state, _ = solver.step(
                term, p, p_next, y, captured, solver_state, made_jump=False
            )
            keep, p, p_next, _, controller_state, _ = controller.adapt_step_size(
                p, p_next, y, y_next, captured, error, order, controller_state
            )
            y, solver_state = jax.tree.map(
                lambda new, old: jnp.where(keep, new, old), (y_next, new_solver_state), (y, solver_state)
            )
            return p, p_next, y, solver_state, controller_state, steps + 1

        carry = (zero, second, y, solver_state, controller_state, jnp.int32(0))
        p, _, y, _, _, steps = jax.lax.while_loop(more, step, carry)
        return jax.tree.map(lambda leaf: jnp.where(p >= 1, leaf, jnp.nan), y), steps

    end, steps = jax.vmap(solve)(start)
    return end, 1 + STAGES * jnp.max(steps).astype(jnp.int32)


def _for_one_example(
    batched: Callable[[Any, Array], Any], start: Any, u: Array
) -> tuple[Callable[..., Any], list[Array]]:
    """A function of one example, (y, u, *captured), which under vmap is one call of `batched` for the whole batch.

    Also what `batched` closes over, such as parameters and labels: it must enter the solver's loop as an argument.
    """
    program, shapes = jax.make_jaxpr(batched, return_shape=True)(start, u)
    structure = jax.tree.structure(shapes)

    @jax.custom_batching.custom_vmap
    def one(y: Any, u: Array, *captured: Array) -> Any:
        return jax.tree.map(jnp.zeros_like, y)

    @one.def_vmap
    def _(size: int, is_batched: list, y: Any, u: Array, *captured: Array) -> tuple[Any, Any]:
        whole = jax.tree.map(
            lambda leaf, batched: leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape)), y, is_batched[0]
        )
        run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(program.jaxpr, captured))
        out = run(*jax.tree.leaves(whole), jnp.broadcast_to(u, (size,)))
        return jax.tree.unflatten(structure, out), jax.tree.unflatten(structure, [True] * len(out))

    return one, program.consts
