"""The base class of guidance rules, and the denoiser of a rule, which samplers evaluate.

A rule combines several predictions for one xt. `asks` says of each evaluation of the network which slots it is not
told: ({}, {"label"}) are the conditional and the unconditional prediction. All of them come from one call of the
network with a larger batch. Predictions of something else, such as another network, follow them.

A linear rule, whose result is a sum of predictions with weights that add up to 1, means the same in x0, in noise and in
every other kind of prediction, since for one xt these are affine images of one another. It may be taken of the logits
of tokens too. Any other rule states x0, and the noise that xt then implies is restored.

At scale 1 every rule is the conditional prediction, and nothing else is evaluated.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffusion_jax.conditioning import with_masks
from diffusion_jax.domains import SHARE, Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.samplers.sampler import Sampler, require_memory
from diffusion_jax.schedulers import Denoiser, NoiseSchedule, Prediction, TimeGrid
from diffusion_jax.schedulers.arrays import as_compute, like_data
from diffusion_jax.specs import DataSpec

Conditions = Mapping[str, Any]
ConditionalDenoiser = Callable[..., Any]
"""(xt, t, conditions) -> Prediction, or logits of tokens; a flow map is called (xt, t, conditions, s)."""
Scale = Annotated[float, Bounds(low=-1000, high=1000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How several predictions become one.

    Attributes:
      scale: strength of guidance; 1 is the conditional prediction.
      interval: (low, high), guidance only at noise levels sigma / alpha in (low, high]; () is everywhere (Kynkaanniemi
        et al. 2024, arXiv:2404.07724). Outside only the conditional prediction is evaluated.
      rescale: the fraction by which the deviation of x0 is brought back to that of the conditional x0 (Lin et al. 2023,
        arXiv:2305.08891, who take 0.7); 0 is not at all.
      reuse: steps for which the difference to the conditional prediction is kept, as a velocity, once it is evaluated;
        the others ask the network once (as in FasterCache, Lv et al. 2024, arXiv:2410.19355, but for its weights).

    `others` names the predictions beside the network's own that the rule needs, in the order in which it is given them.

    Raises:
      UserError: the interval is not one, or the rule with reuse is not a plain difference.
    """

    others: ClassVar[tuple[str, ...]] = ()
    of_pixels: ClassVar[bool] = False
    """Whether the rule expects x0 within [-1, 1]."""
    negative: ClassVar[str | int] = ""
    """What replaces the null condition, as a person writes it; "" for nothing."""
    guide: ClassVar[str] = ""
    guide_ema: ClassVar[str] = ""
    """The place of the worse network and the average of its parameters, if the rule needs one."""

    scale: Scale = 1.0
    interval: Annotated[tuple[float, ...], Bounds(low=0, infinite=True)] = ()
    rescale: Annotated[float, SHARE] = 0.0
    reuse: Annotated[int, Bounds(low=1, high=10_000)] = 1

    def __post_init__(self):
        if self.reuse > 1 and (self.interval or self.others or not self.linear):
            raise UserError(
                f"guidance {name_of(self)} with reuse {self.reuse} keeps a difference from step to step: use "
                "classifier_free without interval and rescale, or reuse 1"
            )
        if self.interval and not (len(self.interval) == 2 and self.interval[0] < self.interval[1]):
            raise UserError(
                f"the interval of guidance must be (low, high) with low below high, or (), it is {self.interval}"
            )

    @property
    def neutral(self) -> bool:
        """Whether the rule is the conditional prediction, whatever the others are."""
        return self.scale == 1.0

    @property
    def can_be_told(self) -> bool:
        """Whether the scale alone determines the rule, so that it can be an input of a network (`Model`)."""
        return self.neutral

    @property
    def linear(self) -> bool:
        """Whether the rule is a sum of predictions with weights that add up to 1."""
        return self.rescale == 0.0

    @property
    def remembers(self) -> bool:
        """Whether the rule carries a memory from step to step."""
        return self.reuse > 1 and not self.neutral

    def asks(self, asked: Sequence[str]) -> tuple[frozenset[str], ...]:
        """The slots that are null in each evaluation of the network, of the slots `asked`; the first is conditional."""
        return frozenset(), frozenset(asked)

    def evaluations(self, asked: Sequence[str]) -> int:
        """Evaluations of a network for one guided prediction."""
        return 1 if self.neutral else len(self.asks(asked)) + len(self.others)

    def check(self, asked: Sequence[str], data: DataSpec, *, is_flow_map: bool = False) -> None:
        """Check the rule against a model.

        Args:
          asked: the slots of the network that may be null.
          data: the form of what is diffused.
          is_flow_map: whether the sampler gives the network two times.

        Raises:
          UserError: the rule does not fit; the message names both sides.
        """
        if self.neutral:
            return
        name = name_of(self)
        if not asked and any(self.asks(("a slot",))):
            raise UserError(
                f"guidance {name} needs a conditional network, and this one takes no class and no other condition: use "
                "scale 1, or autoguidance with a guide"
            )
        if not self.linear and (data.kind == "tokens" or is_flow_map):
            what = "logits of tokens" if data.kind == "tokens" else "a flow map"
            raise UserError(
                f"guidance {name} with rescale {self.rescale:g} states x0, but the network predicts {what}: use "
                "classifier_free with rescale 0"
            )
        if self.reuse > 1 and data.kind == "tokens":
            raise UserError(
                f"guidance {name} with reuse {self.reuse} keeps a velocity, but tokens have none: use reuse 1"
            )
        if self.of_pixels and data.kind != "pixels":
            raise UserError(f"guidance {name} needs pixels within [-1, 1], but the diffused data is {data.kind}")

    def check_sampler(self, sampler: Sampler, grid: TimeGrid) -> None:
        """Check the rule against a sampler and its grid.

        Raises:
          UserError: the sampler cannot carry a memory, or has more evaluations per step than the rule expects.
        """
        if self.remembers:
            require_memory(sampler)
        if self.reuse > 1 and sampler.nfe(grid.num_steps, ends_clean=grid.ends_clean) != grid.num_steps:
            raise UserError(
                f"guidance with reuse {self.reuse} needs steps of one evaluation, but sampler "
                f"{type(sampler).__name__} has more: use ddim, euler or flow_euler, or reuse 1"
            )

    def __call__(self, *predictions: Any, memory: Array | None = None) -> Any:
        """The guided prediction from those that the rule asks for, and what it remembers of earlier steps."""
        found = self.lean(*predictions, memory=memory)
        if self.rescale == 0.0:
            return found
        return dataclasses.replace(found, x0=rescaled(found.x0, predictions[0].x0, self.rescale))

    def lean(self, *predictions: Any, memory: Array | None) -> Any:
        """The same before `rescale`; subclasses define this."""
        raise NotImplementedError

    def first_memory(self, x: Float[Array, "batch ..."]) -> Any:
        """The memory at the start, for a rule that has one."""
        return {"step": jnp.int32(0), "difference": jnp.zeros_like(x)} if self.reuse > 1 else jnp.zeros_like(x)

    def remember(self, *predictions: Any, memory: Array) -> Array:
        """The memory after a step whose first predictions are these."""
        return memory


def rescaled(
    found: Float[Array, "batch ..."], conditional: Float[Array, "batch ..."], share: float | Array
) -> Float[Array, "batch ..."]:
    """What guidance found, with the deviation of each example brought back to that of the conditional prediction by
    `share` (Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16)."""
    axes = tuple(range(1, found.ndim))
    ratio = jnp.std(conditional, axis=axes, keepdims=True) / jnp.std(found, axis=axes, keepdims=True)
    return found * (share * ratio + 1.0 - share)


GUIDANCE: Registry[Rule] = Registry("guidance rule")


def name_of(rule: Rule) -> str:
    """The name under which a rule is registered."""
    return next((name for name in GUIDANCE if GUIDANCE[name] is type(rule)), type(rule).__name__)


@GUIDANCE.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoGuidance(Rule):
    """The conditional prediction.

    Raises:
      UserError: a scale, an interval or a rescale is given, which would be ignored.
    """

    def __post_init__(self):
        if self.scale != 1.0 or self.interval or self.rescale or self.reuse > 1:
            raise UserError(
                f"guidance none has scale 1, no interval, rescale 0 and reuse 1, not {self.scale:g}, {self.interval}, "
                f"{self.rescale:g} and {self.reuse}: name a rule such as classifier_free"
            )

    def asks(self, asked: Sequence[str]) -> tuple[frozenset[str], ...]:
        return (frozenset(),)

    def lean(self, conditional: Any, memory: Array | None = None) -> Any:
        return conditional


def guided(
    rule: Rule,
    denoise: ConditionalDenoiser,
    conditions: Conditions,
    *,
    schedule: NoiseSchedule | None = None,
    null: Conditions | None = None,
    asked: Sequence[str] | None = None,
    others: Mapping[str, Denoiser] | None = None,
) -> Denoiser:
    """The denoiser of a rule, for given conditions.

    Args:
      rule: the rule of guidance.
      denoise: (xt, t, conditions) -> Prediction, or logits.
      conditions: the network's conditions, each [batch, ...].
      schedule: the noise schedule; needed for an interval, and by rules that are not linear.
      null: the null conditions, or a negative condition; of the structure of `conditions`.
      asked: the slots that may be null; by default all.
      others: further denoisers by name, see `Rule.others`.

    Returns:
      (xt, t) -> Prediction. That of a rule which remembers is called with `memory=` and returns (Prediction, memory
      after a step that begins so), see `sample`.

    Raises:
      UserError: there is no null condition, schedule or other prediction where the rule needs it, or `conditions` and
        `null` differ in structure or shapes.
    """

    def plain(xt: Array, t: Array, *s: Array) -> Any:
        return denoise(xt, t, conditions, *s)

    if rule.neutral:
        return plain
    others = {} if others is None else others
    told = _told(rule, conditions, null, asked)
    for other in rule.others:
        if other not in others:
            raise UserError(f"guidance {name_of(rule)} needs {other!r}, which is not given")
    _require_schedule(rule, schedule)
    stacked = jax.tree.map(lambda *rows: _interleave(rows), *map(dict, told))

    def predictions(xt: Array, t: Array, *s: Array) -> list[Any]:
        own = _evaluate(denoise, stacked, len(told), xt, t, *s)
        return [*own, *(others[name](xt, t, *s) for name in rule.others)]

    def finish(found: Any, xt: Array, t: Array) -> Any:
        return found if rule.linear else with_x0(found, schedule, xt, t)

    def inside(xt: Array, t: Array, *s: Array) -> Any:
        return finish(rule(*predictions(xt, t, *s)), xt, t)

    def inside_remembering(xt: Array, t: Array, *s: Array, memory: Array) -> tuple[Any, Array]:
        found = predictions(xt, t, *s)
        return finish(rule(*found, memory=memory), xt, t), rule.remember(*found, memory=memory)

    if rule.reuse > 1:
        return _reusing(rule, predictions, plain, schedule)
    whole = inside_remembering if rule.remembers else inside
    return _within(rule.interval, whole, plain, schedule) if rule.interval else whole


def _require_schedule(rule: Rule, schedule: NoiseSchedule | None) -> None:
    if schedule is None and (rule.interval or rule.reuse > 1 or not rule.linear):
        raise UserError(
            f"guidance {name_of(rule)} with an interval or a reuse, or with a rule that states x0: give the schedule"
        )


def _told(
    rule: Rule, conditions: Conditions, null: Conditions | None, asked: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The network's conditions in each evaluation."""
    asks = rule.asks(tuple(null or {}) if asked is None else asked)
    if not null and len(rule.asks(("a slot",))) > 1:
        raise UserError(
            "guidance needs a null condition, and this network has none: train it class-conditionally with "
            "train.conditioning_dropout > 0, or use scale 1"
        )
    if null:
        shapes, null_shapes = (jax.tree.map(jnp.shape, dict(tree)) for tree in (conditions, null))
        if shapes != null_shapes:
            raise UserError(f"conditions and null must have the same shapes, got {shapes} and {null_shapes}")
    nulls = [with_masks(slots) for slots in asks]
    return [{name: null[name] if name in slots else value for name, value in conditions.items()} for slots in nulls]


def _evaluate(
    denoise: ConditionalDenoiser, stacked: Conditions, count: int, xt: Array, t: Array, *s: Array
) -> list[Any]:
    """The predictions for `count` sets of conditions with interleaved rows, from one call."""
    if count == 1:
        return [denoise(xt, t, stacked, *s)]

    def repeated(time: Array) -> Array:
        time = jnp.asarray(time)
        return _interleave([time] * count) if time.ndim else time

    found = denoise(_interleave([xt] * count), repeated(t), stacked, *map(repeated, s))
    apart = jax.tree.map(lambda p: p.reshape(-1, count, *p.shape[1:]), found)
    return [jax.tree.map(lambda p, i=i: p[:, i], apart) for i in range(count)]


def _interleave(rows: Sequence[Array]) -> Array:
    """Rows a_0, b_0, ..., a_1, b_1, ..., so that all rows of an example stay on its device."""
    return jnp.stack(list(rows), axis=1).reshape(-1, *jnp.shape(rows[0])[1:]) if len(rows) > 1 else rows[0]


def with_x0(
    prediction: Prediction, schedule: NoiseSchedule, xt: Float[Array, "batch ..."], t: Float[Array, "*batch"]
) -> Prediction:
    """The prediction with the noise that xt and its x0 imply."""
    found = Prediction.from_x0(schedule, prediction.x0, xt, t)
    return dataclasses.replace(found, variance_fraction=prediction.variance_fraction)


def in_interval(schedule: NoiseSchedule, t: Float[Array, "*times"], low: float, high: float) -> Bool[Array, "*times"]:
    """Whether low < sigma / alpha <= high."""
    log_level = -0.5 * schedule.log_snr(t)
    return (log_level > jnp.log(low)) & (log_level <= jnp.log(high))


def _within(interval: tuple[float, ...], whole: Denoiser, plain: Denoiser, schedule: NoiseSchedule) -> Denoiser:
    """`whole` inside the interval and `plain` elsewhere; only one of the two is evaluated."""

    def denoise(xt: Array, t: Array, *s: Array, **memory: Array) -> Any:
        t = as_compute(t)
        if t.ndim:
            raise UserError("a guidance interval is for sampling, where t is one number for the whole batch")

        def outside() -> Any:
            found = plain(xt, t, *s)
            return (found, memory["memory"]) if memory else found

        is_inside = in_interval(schedule, t, *interval)
        return jax.lax.cond(is_inside, lambda: whole(xt, t, *s, **memory), outside)

    return denoise


def _reusing(
    rule: Rule, predictions: Callable[..., list[Any]], plain: Denoiser, schedule: NoiseSchedule
) -> Callable[..., tuple[Prediction, Any]]:
    """The denoiser that evaluates the rule in one of `rule.reuse` steps, and keeps what it adds for the others.

    What guidance adds to (x0, noise) at a given xt is d (-sigma, alpha) for a velocity d: that is kept, for it is
    finite at all noise levels.
    """

    def denoise(xt: Array, t: Array, *s: Array, memory: Any) -> tuple[Prediction, Any]:
        alpha, sigma = (like_data(as_compute(curve(t)), xt) for curve in (schedule.alpha, schedule.sigma))

        def evaluated() -> tuple[Prediction, Array]:
            found = predictions(xt, t, *s)
            leaned, own = rule(*found), found[0]
            moved = alpha * (leaned.noise - own.noise) - sigma * (leaned.x0 - own.x0)
            return leaned, moved / (alpha**2 + sigma**2)

        def kept() -> tuple[Prediction, Array]:
            own, d = plain(xt, t, *s), memory["difference"]
            return dataclasses.replace(own, x0=own.x0 - sigma * d, noise=own.noise + alpha * d), d

        found, difference = jax.lax.cond(memory["step"] % rule.reuse == 0, evaluated, kept)
        return found, {"step": memory["step"] + 1, "difference": difference}

    return denoise


def network_evaluations(
    rule: Rule,
    asked: Sequence[str],
    evaluations: int,
    *,
    schedule: NoiseSchedule | None = None,
    times: Callable[[], Float[np.ndarray, " evaluations"]] | None = None,
) -> int:
    """Evaluations of networks for one sample (NFE).

    Args:
      rule: the rule of guidance.
      asked: the slots of the network that may be null.
      evaluations: number of the sampler's evaluations of the denoiser.
      schedule: the noise schedule; only a rule with an interval needs it.
      times: the times at which the sampler asks the denoiser; only a rule with an interval needs them.
    """
    each = rule.evaluations(asked)
    if rule.reuse > 1 and each > 1:  # for a sampler with one evaluation a step, as `Setting.check` requires
        return evaluations + (each - 1) * -(-evaluations // rule.reuse)
    if each == 1 or not rule.interval:
        return each * evaluations
    return evaluations + (each - 1) * int(in_interval(schedule, as_compute(times()), *rule.interval).sum())
