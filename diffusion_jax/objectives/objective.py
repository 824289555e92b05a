"""What training minimises: a pure function of a denoiser, a batch and keys.

    loss, metrics = objective.loss(denoise_fn, batch, key, context)

`denoise_fn` is a Denoiser with parameters, conditioning and dropout bound, so an objective knows nothing of networks.
The loss is the mean over the given examples; code that shards the batch averages over the shards. Random numbers
come from the per-example keys only, so an example's share of the loss does not depend on how the batch is split.

Some losses need more, which a `Context` passes explicitly: the training step (curricula), the same network with
averaged parameters (consistency training, shortcut models), a frozen teacher (distillation), the network's intermediate
features (representation alignment), the loss's own parameters (a learned noise schedule or uncertainty), and its own
state (importance sampling of times).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.errors import UserError
from diffusion_jax.objectives.asking import Asking
from diffusion_jax.registry import Registry
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Denoiser, Prediction

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "state"],
    meta_fields=["target", "teacher", "unconditional", "aligned", "with_network"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The inputs of a loss besides denoiser, batch and keys.

    Attributes:
      step: optimizer steps done, an int32 scalar or a Python number.
      target: the denoiser with averaged parameters, without gradient; same conditioning and dropout masks.
      teacher: the denoiser of a frozen, trained network.
      unconditional: the denoiser with the null conditioning, for losses that train guidance into the network.
      aligned: the denoiser that also returns what the network sows: "features" of every token, [batch, tokens,
        channels].
      with_network: parameters of a network like the trained one -> its denoiser, with the same conditions and without
        gradient to these.
      params: the objective's own trainable parameters, from `init_params`, and its copies of the network.
      state: the objective's own state, from `init_state`.
    """

    step: Int[Array, ""] | int = 0
    target: Denoiser | None = None
    teacher: Denoiser | None = None
    unconditional: Denoiser | None = None
    aligned: Callable[[Array, Array], tuple[Prediction, Mapping[str, Array]]] | None = None
    with_network: Callable[[Any], Denoiser] | None = None
    params: Any = None
    state: Any = None


NO_CONTEXT = Context()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A training loss.

    `process_kind` is the kind of process that the loss belongs to, in the process's own words.
    `discrete` says what the denoiser takes: numbers (a `Denoiser`), or tokens (a `TokenDenoiser`).
    `needs` names the fields of `Context` that must not be None, out of "target", "teacher", "aligned".
    `num_times` is 2 for a loss that calls the denoiser as a flow map, (xt, t, s).
    `reads_prior` says whether it weights examples of a class against those of a subject, by batch["prior"].
    `makes` is what the trained denoiser is, in the terms of `Sampler.denoiser_kind`.
    `copies` names those of the objective's own parameters that start as a copy of the network's.
    """

    process_kind: ClassVar[str] = "gaussian"
    discrete: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    num_times: ClassVar[int] = 1
    reads_prior: ClassVar[bool] = False
    makes: ClassVar[Literal["denoiser", "consistency", "flow_map"]] = "denoiser"
    copies: ClassVar[tuple[str, ...]] = ()

    @property
    def network_every(self) -> int:
        """N, where the network is updated in one of N steps and the objective's own parameters in each."""
        return 1

    @property
    def reads(self) -> frozenset[str]:
        """The config groups that only some objectives read: an objective with a `time_sampler` draws times."""
        return frozenset({"time_sampler"} & {field.name for field in dataclasses.fields(self)})

    @property
    def squared_error(self) -> "Objective | None":
        """The part of the loss that is a weighted squared error, as a `Denoising`; None if there is none."""
        return None

    @property
    def reads_lpips(self) -> bool:
        """Whether the objective's state is LPIPS's network, whose weights are in its files `vgg` and `lpips`."""
        return False

    @property
    def bounds_likelihood(self) -> bool:
        """Whether the trained model has a likelihood, or a bound on one: a network that only jumps to the end of the
        flow has none."""
        return self.makes != "consistency"

    @property
    def most_steps(self) -> int | None:
        """The largest number of sampling steps that the loss trains for; None if there is no limit."""
        return None

    def init_params(self, key: Key[Array, ""]) -> Any:
        """The objective's own trainable parameters; None if it has none."""
        return None

    def init_state(self) -> Any:
        """The objective's own state, which `update_state` updates in each step; None if it has none."""
        return None

    def update_state(self, state: Any, observed: Mapping[str, Float[Array, " batch"]]) -> Any:
        """The state after a step, from `observed`: per-example values over the whole global batch, in its order."""
        return state

    def target_decay_at(self, step: Int[Array, ""]) -> Float[Array, ""] | float:
        """Decay of the average that is `Context.target`, at an optimizer step; 0: the parameters themselves.

        Used where `needs` has "target": target <- decay target + (1 - decay) params, after every step.
        """
        return 0.0

    @property
    def asking(self) -> Asking:
        """How samplers call the denoiser: only in the way in which this loss trains it."""
        return Asking()

    def for_sampling(self, denoise_fn: Denoiser) -> Denoiser:
        """The denoiser for samplers: called only at times at which this loss trains it."""
        return self.asking(denoise_fn)

    def constrain(self, params: Any) -> Any:
        """The nearest parameters of the loss that it allows, applied after every optimizer step."""
        return params

    def loss(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], Metrics]:
        """The scalar to differentiate, and the scalars to log, including "loss"."""
        raise NotImplementedError

    def loss_and_observed(
        self, denoise_fn: Denoiser, batch: Batch, key: BatchKey, context: Context = NO_CONTEXT
    ) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Float[Array, " batch"]]]]:
        """The loss, and (metrics, per-example values for `update_state`); the latter only if there is a state."""
        loss, metrics = self.loss(denoise_fn, batch, key, context)
        return loss, (metrics, {})

    def require(self, context: Context) -> None:
        """Raise UserError if the context lacks something that the objective needs."""
        missing = sorted(name for name in self.needs if getattr(context, name) is None)
        if "aligned" in missing:
            raise UserError(
                f"objective {type(self).__name__} needs the network's features, aligned: pass it in Context "
                "(in a config, model.align_depth says after which block of a dit)"
            )
        if missing:
            raise UserError(
                f"objective {type(self).__name__} needs a {' and a '.join(missing)} network: pass it in Context "
                "(in a config, `teacher.workdir` names the run of the teacher)"
            )


def with_copies(objective: Objective, own: Any, network: Any) -> Any:
    """The objective's own parameters, with its copies of the network's; None if there are neither."""
    copies = {name: jax.tree.map(jnp.copy, network) for name in objective.copies}
    return {**(own or {}), **copies} if copies else own


OBJECTIVES: Registry[Objective] = Registry("objective")


def of_process(kind: str) -> list[str]:
    """The names of the objectives for a kind of process."""
    return [name for name in OBJECTIVES if OBJECTIVES.example(name).process_kind == kind]
