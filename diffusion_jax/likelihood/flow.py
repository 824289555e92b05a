"""Exact likelihood by the probability-flow ODE.

Song et al. 2021 (arXiv 2011.13456), app. D.2, in the angle of `schedulers/angle.py`: u = atan(sigma / alpha), z = xt /
r with r = sqrt(alpha^2 + sigma^2), dz/du = v(z, u) = cos(u) noise - sin(u) x0. Along the flow

    (1)   d log p(z) / du = -div v(z, u),      log p(x) = log p(z) - D log r,
    (2)   log p(x_first) = log p(x_last) + D log(r_last / r_first) + integral of div v du,

from the least noise (t_first, where the data are placed) to t = 1, where x is Gaussian with the prior's standard
deviation. The divergence is the trace of the Jacobian, either exact, by D forward-mode products, or by Hutchinson's
estimate e^T J e with random signs e that are fixed along the path: unbiased, and exact where the Jacobian is diagonal.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion_jax.errors import UserError
from diffusion_jax.ode import integrate
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Denoiser, NoiseSchedule
from diffusion_jax.schedulers.angle import angle_velocity
from diffusion_jax.schedulers.arrays import as_compute


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["log_likelihood", "x_1", "log_determinant", "nfe"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLikelihood:
    """Nats per example [batch]; the data's end point at t = 1; the log-determinant of x_first -> x_1; evaluations."""

    log_likelihood: Float[Array, " batch"]
    x_1: Float[Array, "batch ..."]
    log_determinant: Float[Array, " batch"]
    nfe: int | Int[Array, ""]


def log_likelihood(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Float[Array, "batch ..."],
    key: BatchKey | None = None,
    *,
    divergence: Literal["exact", "hutchinson"] = "hutchinson",
    num_probes: int = 1,
    steps: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_first: float = 1e-5,
) -> FlowLikelihood:
    """log p(x) of continuous data, eq. (2).

    Args:
      denoiser: (xt, t) -> Prediction.
      schedule: its schedule.
      x: data, [batch, ...], placed at t_first (at t = 0 if the schedule has noise left there).
      key: key for Hutchinson's signs.
      divergence: "exact", D products per evaluation, or "hutchinson", `num_probes` of them.
      num_probes: signs per example; their estimates are averaged.
      steps: fixed steps of the classical Runge-Kutta method, equal in u; 0 selects the adaptive method.
      rtol: relative tolerance of the adaptive method.
      atol: its absolute tolerance.
      t_first: where to begin on schedules with sigma(0) = 0.

    Raises:
      UserError: a missing key, or options out of range.
    """
    if divergence not in ("exact", "hutchinson") or num_probes < 1 or steps < 0:
        raise UserError(
            "log_likelihood takes divergence 'exact' or 'hutchinson', num_probes >= 1 and steps >= 0, "
            f"got {divergence!r}, {num_probes} and {steps}"
        )
    if divergence == "hutchinson" and key is None:
        raise UserError("Hutchinson's estimate draws signs: give a key, or divergence='exact'")
    begin = 0.0 if schedule.sigma(0.0) > 0 else t_first
    ends = [(float(schedule.alpha(t)), float(schedule.sigma(t))) for t in (begin, 1.0)]
    (first, r_first), (last, r_last) = ((math.atan2(s, a), math.hypot(s, a)) for a, s in ends)
    x = as_compute(x)
    dimensions = math.prod(x.shape[1:])
    probes = _probes(x, key, divergence, num_probes)

    def velocity(z: Array, u: Array) -> Array:
        return angle_velocity(denoiser, schedule, z, u, noisy=(last, 1.0), clean=(first, begin))

    def slopes(y: tuple[Array, Array], u: Array) -> tuple[Array, Array]:
        z, _ = y

        def along(_: None, e: Array) -> tuple[None, tuple[Array, Array]]:
            v, product = jax.jvp(lambda z: velocity(z, u), (z,), (jnp.broadcast_to(e, z.shape),))
            return None, (v, jnp.sum(e * product, axis=tuple(range(1, z.ndim))))

        _, (v, traces) = jax.lax.scan(along, None, probes)
        share = 1.0 if divergence == "exact" else 1.0 / num_probes
        return v[0], share * jnp.sum(traces, axis=0)

    start = (x / r_first, jnp.zeros(x.shape[:1], x.dtype))
    u_first, u_last = jnp.asarray(first, x.dtype), jnp.asarray(last, x.dtype)
    if steps:
        (z, total), nfe = _fixed(slopes, start, u_first, u_last, steps), 4 * steps
    else:
        (z, total), nfe = integrate(slopes, start, u_first, u_last, rtol=rtol, atol=atol)
    log_determinant = total + dimensions * math.log(r_last / r_first)
    x_1, std = r_last * z, schedule.prior_std
    squares = jnp.sum((x_1 / std) ** 2, axis=tuple(range(1, x.ndim)))
    prior = -0.5 * squares - dimensions * (math.log(std) + 0.5 * math.log(2.0 * math.pi))
    return FlowLikelihood(log_likelihood=prior + log_determinant, x_1=x_1, log_determinant=log_determinant, nfe=nfe)


def _probes(x: Array, key: BatchKey | None, divergence: str, num_probes: int) -> Float[Array, "probes ..."]:
    """Directions of the forward-mode products: unit vectors for the trace, or random signs."""
    if divergence == "exact":
        dimensions = math.prod(x.shape[1:])
        return jnp.eye(dimensions, dtype=x.dtype).reshape(dimensions, 1, *x.shape[1:])
    draws = key.fold_in("probes").uniforms((num_probes, *x.shape[1:]))
    return jnp.moveaxis(jnp.where(draws < 0.5, -1.0, 1.0).astype(x.dtype), 1, 0)


def _fixed(slopes, start, first: Array, last: Array, steps: int):
    """The classical Runge-Kutta method of fourth order."""
    h = (last - first) / steps
    size = start[0].shape[0]

    def at(y, u):
        return slopes(y, jnp.broadcast_to(u, (size,)))

    def plus(y, factor, d):
        return jax.tree.map(lambda a, b: a + factor * b, y, d)

    def step(y, index):
        u = first + index * h
        a = at(y, u)
        b = at(plus(y, 0.5 * h, a), u + 0.5 * h)
        c = at(plus(y, 0.5 * h, b), u + 0.5 * h)
        d = at(plus(y, h, c), u + h)
        total = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, a, b, c, d)
        return plus(y, h, total), None

    return jax.lax.scan(step, start, jnp.arange(steps))[0]
