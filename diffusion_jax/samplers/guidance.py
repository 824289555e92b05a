"""Guidance: functions from denoisers to denoisers that lean towards a condition. They compose.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) extrapolates from the unconditional prediction through
the conditional one,

    (1)   guided = unconditional + scale (conditional - unconditional),

so scale 1 is the conditional model, scale 0 the unconditional one, and larger scales sharpen. (Ho & Salimans write
w = scale - 1.) For one xt every kind of prediction is an affine image of every other, so (1) may be taken in x0 and in
noise at once and means the same in all kinds. A *negative condition* takes the place of the null one.

    function            what it does                                                          paper
    classifier_free     (1), or another rule for the same two predictions, see below
    autoguidance        (1) with a worse model in the place of the unconditional one          2406.02507, Karras et al.
    interval            guidance at noise levels in (low, high] only                          2404.07724, Kynkaanniemi
    classifier_guided   the gradient of log p(y | xt) added to the score                      2105.05233, Dhariwal
    dynamic_threshold   an `x0_transform`: clip x0 at a quantile of its own, divide by it     2205.11487, Saharia et al.

Rules for two predictions, of which `Extrapolate` is (1):

    Rescaled            (1) with the deviation of the conditional x0, a share of the way      2305.08891, Lin et al.
    AdaptiveProjected   (1), the difference's part along the conditional x0 turned down       2410.02416, Sadat et al.

At scale 1 there is no second evaluation.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import PREDICTIONS, Denoiser, NoiseSchedule, Prediction
from diffusion_jax.schedulers.arrays import as_compute, like_data

Conditioning = Mapping[str, Array]
ConditionalDenoiser = Callable[..., Prediction]
"""(xt, t, conditioning) -> Prediction; a flow map is called (xt, t, conditioning, s)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extrapolate:
    """Eq. (1)."""

    scale: float

    def __call__(self, conditional: Prediction, unconditional: Prediction) -> Prediction:
        return jax.tree.map(lambda u, c: u + self.scale * (c - u), unconditional, conditional)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescaled(Extrapolate):
    """Eq. (1), with x0 scaled to the standard deviation of the conditional x0 by a share `rescale`, 0.7 in the paper.

    Not a statement about x0 and noise at once: the noise that xt then implies must be restored (`with_x0`).
    """

    rescale: float = 0.7

    def __call__(self, conditional: Prediction, unconditional: Prediction) -> Prediction:
        guided = super().__call__(conditional, unconditional)
        axes = tuple(range(1, guided.x0.ndim))
        ratio = jnp.std(conditional.x0, axis=axes, keepdims=True) / jnp.std(guided.x0, axis=axes, keepdims=True)
        x0 = guided.x0 * (self.rescale * ratio + 1.0 - self.rescale)
        return dataclasses.replace(guided, x0=x0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveProjected(Extrapolate):
    """Eq. (1) in x0, its difference cut to norm `norm_threshold` and its part along the conditional x0 times `eta`.

    The paper's momentum over steps is left out: a denoiser has no memory.
    """

    eta: float = 0.0
    norm_threshold: float = float("inf")

    def __call__(self, conditional: Prediction, unconditional: Prediction) -> Prediction:
        axes = tuple(range(1, conditional.x0.ndim))

        def inner(a: Array, b: Array) -> Array:
            return jnp.sum(a * b, axis=axes, keepdims=True)

        difference = conditional.x0 - unconditional.x0
        norm = jnp.sqrt(inner(difference, difference))
        difference = difference * jnp.minimum(1.0, self.norm_threshold / jnp.maximum(norm, 1e-12))
        direction = conditional.x0 / jnp.sqrt(jnp.maximum(inner(conditional.x0, conditional.x0), 1e-12))
        along = inner(difference, direction) * direction
        x0 = conditional.x0 + (self.scale - 1.0) * (difference - along + self.eta * along)
        return dataclasses.replace(conditional, x0=x0)


def classifier_free(
    denoise_conditional: ConditionalDenoiser,
    conditioning: Conditioning,
    null: Conditioning | None,
    guidance_scale: float | Extrapolate,
    *,
    schedule: NoiseSchedule | None = None,
) -> Denoiser:
    """The Denoiser of eq. (1), or of another rule.

    The two predictions come from one call of the network with the batch doubled (unconditional and conditional rows in
    turn): one function evaluation in a sampler's NFE, twice the work of one. At scale 1 and 0 only the half that counts
    is evaluated, which is why the scale is a Python number and static under jit.

    Args:
      denoise_conditional: (xt, t, conditioning) -> Prediction.
      conditioning: arrays [batch, ...].
      null: what stands for "no condition", or a negative condition, of the same structure and shapes.
      guidance_scale: the scale of (1), or a rule such as `Rescaled(scale=5.0)`.
      schedule: needed by the rules that change x0 alone, to make the noise agree.

    Raises:
      UserError: there is no null condition, or `conditioning` and `null` differ in structure or shapes.
    """
    plain = not isinstance(guidance_scale, Extrapolate)
    rule = Extrapolate(scale=guidance_scale) if plain else guidance_scale
    if rule.scale == 1.0:
        return lambda xt, t, *s: denoise_conditional(xt, t, conditioning, *s)
    if not null:
        raise UserError(
            "guidance needs a null condition, and this network has none: train it class-conditionally with "
            "train.conditioning_dropout > 0, or use guidance_scale 1"
        )
    shapes, null_shapes = (jax.tree.map(jnp.shape, dict(tree)) for tree in (conditioning, null))
    if shapes != null_shapes:
        raise UserError(f"conditioning and null must have the same shapes, got {shapes} and {null_shapes}")
    if type(rule) is Extrapolate and rule.scale == 0.0:
        return lambda xt, t, *s: denoise_conditional(xt, t, null, *s)
    if type(rule) is not Extrapolate and schedule is None:
        raise UserError(f"guidance rule {type(rule).__name__} changes x0 alone: give the schedule")
    doubled = jax.tree.map(_interleave, dict(null), dict(conditioning))

    def twice(time: Array) -> Array:
        time = jnp.asarray(time)
        return _interleave(time, time) if time.ndim else time

    def denoise(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], *s: Float[Array, "*batch"]) -> Prediction:
        both = denoise_conditional(_interleave(xt, xt), twice(t), doubled, *map(twice, s))
        pairs = jax.tree.map(lambda p: p.reshape(-1, 2, *p.shape[1:]), both)
        unconditional, conditional = (jax.tree.map(lambda p, i=i: p[:, i], pairs) for i in (0, 1))
        guided = rule(conditional, unconditional)
        return guided if type(rule) is Extrapolate else with_x0(guided, schedule, xt, t)

    return denoise


def with_x0(
    prediction: Prediction, schedule: NoiseSchedule, xt: Float[Array, "batch ..."], t: Float[Array, "*batch"]
) -> Prediction:
    """The prediction with the noise that xt and its x0 imply."""
    found = Prediction.from_x0(schedule, prediction.x0, xt, t)
    return dataclasses.replace(found, variance_fraction=prediction.variance_fraction)


def autoguidance(denoiser: Denoiser, worse: Denoiser, guidance_scale: float) -> Denoiser:
    """Eq. (1) from a smaller or less trained model through the model itself; one evaluation of each."""
    if guidance_scale == 1.0:
        return denoiser
    rule = Extrapolate(scale=guidance_scale)
    return lambda xt, t, *s: rule(denoiser(xt, t, *s), worse(xt, t, *s))


def in_interval(schedule: NoiseSchedule, t: Float[Array, "*times"], low: float, high: float) -> Bool[Array, "*times"]:
    """Whether low < sigma / alpha <= high."""
    log_level = -0.5 * schedule.log_snr(t)
    return (log_level > jnp.log(low)) & (log_level <= jnp.log(high))


def interval(guided: Denoiser, plain: Denoiser, schedule: NoiseSchedule, low: float, high: float) -> Denoiser:
    """`guided` where low < sigma / alpha <= high, `plain` elsewhere; only one of the two is evaluated.

    Raises:
      UserError: low is not below high, or (when called) t has a batch axis, of which each row might want another
      branch.
    """
    if not low < high:
        raise UserError(f"a guidance interval needs low < high, got {low} and {high}")

    def denoise(xt: Float[Array, "batch ..."], t: Float[Array, ""], *s: Float[Array, ""]) -> Prediction:
        t = as_compute(t)
        if t.ndim:
            raise UserError("a guidance interval is for sampling, where t is one number for the whole batch")
        return jax.lax.cond(in_interval(schedule, t, low, high), lambda: guided(xt, t, *s), lambda: plain(xt, t, *s))

    return denoise


def classifier_guided(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    log_probability: Callable[[Float[Array, "batch ..."], Float[Array, "*batch"]], Float[Array, " batch"]],
    guidance_scale: float,
) -> Denoiser:
    """score + guidance_scale grad log p(y | xt), which in the noise is noise - sigma guidance_scale grad log p.

    Args:
      denoiser: the model.
      schedule: its schedule.
      log_probability: (xt, t) -> log p(y | xt), [batch], of a classifier of noisy data.
      guidance_scale: 0 is the model alone, without an evaluation of the classifier.
    """
    if guidance_scale == 0.0:
        return denoiser
    kind = PREDICTIONS.build("epsilon")

    def denoise(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"], *s: Float[Array, "*batch"]) -> Prediction:
        gradient = jax.grad(lambda x: jnp.sum(log_probability(x, t)))(xt)
        sigma = like_data(schedule.sigma(as_compute(t)), xt)
        noise = denoiser(xt, t, *s).noise - sigma * guidance_scale * gradient
        return Prediction.from_target(kind, schedule, noise, xt, t)

    return denoise


def dynamic_threshold(
    percentile: float = 0.995, least: float = 1.0
) -> Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]]:
    """An `x0_transform`: with q the percentile of |x0| of each example, at least `least`, clip to [-q, q], divide by q.

    Raises:
      UserError: percentile is not in (0, 1], or least not positive.
    """
    if not 0 < percentile <= 1 or least <= 0:
        raise UserError(f"dynamic_threshold needs 0 < percentile <= 1 and least > 0, got {percentile} and {least}")

    def transform(x0: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        size = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        size = like_data(jnp.maximum(size, least), x0)
        return jnp.clip(x0, -size, size) * (least / size)

    return transform


def _interleave(a: Array, b: Array) -> Array:
    """Rows a_0, b_0, a_1, b_1, ..."""
    return jnp.stack([a, b], axis=1).reshape(-1, *jnp.shape(a)[1:])
