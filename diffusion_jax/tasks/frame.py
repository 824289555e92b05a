"""The base of all tasks: from a request to data, as a pure function of (parameters, request, keys).

Every task has exactly these steps, in this order:

    prepare      encode the given data, and bring the mask to its size
    conditions   compute the network's conditions and the guided denoiser
    sample       go from noise to what is diffused
    decode       to data
    compose      put back given data that may not change

A task never looks at a whole batch, so the result for an example does not depend on how the batch is split.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.conditioning import Conditions, with_masks
from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import NoGuidance, Rule, Sampler, guided
from diffusion_jax.samplers.guidance import name_of as rule_name
from diffusion_jax.samplers.guidance import network_evaluations
from diffusion_jax.samplers.sampler import evaluation_times
from diffusion_jax.schedulers import Denoiser, TimeGrid
from diffusion_jax.systems import Model, Params

Raw = Mapping[str, Array]
"""Raw fields of a batch, under the data's names."""
Others = Callable[[Raw | None, Denoiser], Mapping[str, Denoiser]]
"""(raw fields, the conditional denoiser) -> what a guidance rule needs besides the network, by name."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["asked", "image", "mask", "source", "latents"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request; each field is [batch, ...].

    Attributes:
      asked: raw fields that describe the wanted sample; None asks for nothing.
      image: data to start from.
      mask: 1 where data is to be drawn, of the data's height and width and one channel.
      source: raw fields that describe `image`; None describes nothing.
      latents: noise to start from, in units of the prior.
    """

    asked: Raw | None = None
    image: Array | None = None
    mask: Array | None = None
    source: Raw | None = None
    latents: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The means by which a task is done.

    Attributes:
      model: the model.
      sampler: the sampler.
      grid: its noise levels.
      guidance: the guidance rule.
      clip_x0: whether predictions are clipped to [-1, 1].
      denoiser: (parameters, conditions) -> the denoiser that samplers may call; by default the model's.
      others: what the guidance rule needs besides the network.
      negative: raw fields of one row that replace "nothing" in guidance.
    """

    model: Model
    sampler: Sampler
    grid: TimeGrid
    guidance: Rule = dataclasses.field(default_factory=NoGuidance)
    clip_x0: bool = False
    denoiser: Callable[[Params, Conditions], Denoiser] | None = None
    others: Others | None = None
    negative: Raw | None = None

    def check(self) -> None:
        """Raise UserError if the guidance rule does not fit the model or the sampler."""
        asked, is_map = self.model.conditioning.asked, self.sampler_kind == "flow_map"
        require_tellable(self.guidance, self.model)
        self.rule.check(asked, self.model.diffused, is_flow_map=is_map)
        self.rule.check_sampler(self.sampler, self.grid)

    @property
    def rule(self) -> Rule:
        """The rule that combines several predictions: none, if the network takes the guidance scale as an input."""
        return NoGuidance() if self.model.embeds_guidance else self.guidance

    @property
    def sampler_kind(self) -> str:
        """The denoiser kind that the sampler needs; "denoiser" for tokens too."""
        return "denoiser" if self.model.process.discrete else self.sampler.denoiser_kind

    def conditions(self, params: Params, raw: Raw | None, size: int, beside: Raw | None = None) -> Conditions:
        """The network's conditions for `size` examples; null, if there are no raw fields.

        A network that takes a guidance scale receives the rule's; at scale 1, the model's default. `beside` are raw
        fields of the task itself, such as a picture, used by the parts for which they suffice.
        """
        model = self.model
        found = model.null(params, size) if raw is None else model.conditions(params, raw, size)
        found = {**found, **model.beside(params, beside or {}, size)}
        is_told = model.embeds_guidance and not self.guidance.neutral
        return model.with_guidance(found, self.guidance.scale) if is_told else found

    def plain(self, params: Params, raw: Raw | None, size: int) -> Denoiser:
        """The conditional denoiser, not guided."""
        return self.denoise(params)(self.conditions(params, raw, size))

    def denoise(self, params: Params) -> Callable[[Conditions], Denoiser]:
        """Conditions -> denoiser."""
        return functools.partial(self.denoiser or self.model.denoiser, params)

    def guided(self, params: Params, raw: Raw | None, size: int, beside: Raw | None = None) -> Denoiser:
        """The denoiser that samplers receive."""
        conditions, bound = self.conditions(params, raw, size, beside), self.denoise(params)
        plain = bound(conditions)
        if self.rule.neutral:
            return plain
        if raw is None and self.model.conditioning.asked and not self.guidance.others:
            raise UserError("guidance needs a condition to guide towards: give --label, or use scale 1")
        null = self.model.without(params, conditions, size)
        if self.negative is not None:
            null = null | self._said(params, {**(raw or {})}, size)
        return guided(
            self.guidance,
            lambda xt, t, given, *s: bound(given)(xt, t, *s),
            conditions,
            schedule=self.grid.schedule,
            null=null,
            asked=self.model.conditioning.asked,
            others={} if self.others is None else self.others(raw, plain),
        )

    def _said(self, params: Params, raw: Raw, size: int) -> Conditions:
        """The slots for the negative description."""
        rows = {name: jnp.broadcast_to(v, (size, *jnp.shape(v)[1:])) for name, v in self.negative.items()}
        told = self.model.conditions(params, {**raw, **rows}, size)
        parts = [part for part in self.model.conditioning.parts if set(part.reads) & set(rows)]
        slots = with_masks(slot for part in parts for slot in part.gives)
        return {name: value for name, value in told.items() if name in slots}

    @property
    def options(self) -> dict[str, Any]:
        """The options of `sample`."""
        found: dict[str, Any] = {"memory": self.rule.first_memory} if self.rule.remembers else {}
        return {**found, "x0_transform": clipped} if self.clip_x0 else found

    def encode(self, params: Params, request: Request) -> Float[Array, "batch ..."]:
        """The given data as it is diffused."""
        return self.model.encode(params, request.image)

    def mask(self, request: Request) -> Float[Array, "batch ..."]:
        """The mask in the size of what is diffused: a latent is drawn if any of its pixels is."""
        (batch, height, width), (small, narrow) = request.mask.shape[:3], self.model.diffused.shape[:2]
        cells = request.mask.reshape(batch, small, height // small, narrow, width // narrow, 1)
        return cells.max(axis=(2, 4))

    def evaluations(self, of_denoiser: int) -> int:
        """Network evaluations with guidance, for a number of denoiser evaluations by the sampler."""
        return network_evaluations(
            self.rule,
            self.model.conditioning.asked,
            of_denoiser,
            schedule=self.grid.schedule,
            times=lambda: self.grid.times[:-1] if self.model.process.discrete else evaluation_times(*self._walk),
        )

    @property
    def _walk(self) -> tuple[Sampler, TimeGrid]:
        return self.sampler, self.grid


def require_tellable(rule: Rule, model: Model) -> None:
    """Raise UserError if the network takes a guidance scale, but the rule is more than a scale."""
    if model.embeds_guidance and not rule.can_be_told:
        raise UserError(
            f"the network gets the guidance scale, but {rule_name(rule)} is more than a scale: use "
            "classifier_free without interval, rescale or a negative prompt"
        )


def clipped(x0: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """x0 clipped to [-1, 1]."""
    return jnp.clip(x0, -1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """From a request to data.

    `needs` names the fields of the request that it reads. `gives` is its result: "data" as the codec decodes it, or
    "latents", noise in units of the prior.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[str] = "data"

    def check(self, setting: Setting) -> None:
        """Check the task against a setting.

        Raises:
          UserError: they do not fit; the message names both sides.
        """
        setting.check()
        if setting.model.diffused.kind == "tokens":
            raise UserError(f"task {name_of(self)} needs pixels or latents, but this model diffuses tokens")

    def require_denoiser(self, setting: Setting) -> None:
        """Refuse a sampler for networks that jump."""
        if setting.sampler.denoiser_kind != "denoiser":
            raise UserError(
                f"task {name_of(self)} goes back along the flow and needs a denoiser, but sampler "
                f"{type(setting.sampler).__name__} asks a few-step network that jumps to its end: use a run with a "
                "denoiser, or task inpaint"
            )

    def network_evaluations(self, setting: Setting) -> int:
        """Network evaluations for one result; for an adaptive method, the least number."""
        grid = setting.grid
        return setting.evaluations(setting.sampler.nfe(grid.num_steps, ends_clean=grid.ends_clean))

    def __call__(self, setting: Setting, params: Params, request: Request, key: BatchKey) -> Float[Array, "batch ..."]:
        """The result for every example of the request."""
        raise NotImplementedError


TASKS: Registry[Task] = Registry("task")


def name_of(task: Task) -> str:
    """The name under which a task is registered."""
    return next((name for name in TASKS if TASKS[name] is type(task)), type(task).__name__)
