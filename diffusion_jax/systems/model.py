"""A whole model as one value: codec, conditioning, network and process, without loss, optimizer or config.

    batch["data"] --codec.encode--> z --process.corrupt--> z_t --+
    batch["label"], ... --conditioning--> conditions ------------+--> network --process--> prediction of z
    sample of z --codec.decode--> data

Its parameters are a tree of groups, so that each can be trained, frozen, averaged, sharded or saved by its name:

    params = {"network": ..., "conditioning/text": ..., "codec": ...}       groups without parameters are left out
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from diffusion_jax.adapters import Adapter, Steering, apply, with_dropout
from diffusion_jax.conditioning import Conditioning, Conditions
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import Codec, Identity
from diffusion_jax.rng import BatchKey, fold_name
from diffusion_jax.schedulers import Denoiser, Process, shift_of_size
from diffusion_jax.specs import GUIDANCE, DataSpec
from diffusion_jax.systems.groups import Params, under, within
from diffusion_jax.systems.recipe import Recipe

NETWORK, CONDITIONING, CODEC, ADAPTERS = "network", "conditioning", "codec", "adapters"
SECOND_TIME = "second_time"
TILED = 1024
"""A picture with a longer side is decoded in tiles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The parts that are trained and sampled.

    Attributes:
      data: the form of the data.
      network: a Flax module called with (x, time, conditions, dropout_keys).
      process: what is diffused, and what the network's input and output mean.
      conditioning: fills the network's slots from raw fields of a batch.
      codec: the first stage.
      sampling: the recipe for sampling, used unless a caller says otherwise.
      adapters: they change the parameters of other parts, or fill a slot of the network from their own slots; each has
        a group of parameters, "adapters/<name>".

    Raises:
      UserError: two parts do not fit; the message names both.
    """

    data: DataSpec
    network: Any
    process: Process
    conditioning: Conditioning = dataclasses.field(default_factory=Conditioning)
    codec: Codec = dataclasses.field(default_factory=Identity)
    sampling: Recipe = dataclasses.field(default_factory=Recipe)
    adapters: tuple[Adapter | Steering, ...] = ()

    def __post_init__(self):
        names = [adapter.name for adapter in self.adapters]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"two adapters are called {', '.join(twice)}: give one of them another name")
        z, process = self.codec.spec(self.data), type(self.process).__name__
        if (z.kind == "tokens") != self.process.discrete:
            wanted = "tokens" if self.process.discrete else "pixels or latents"
            raise UserError(f"{process} diffuses {wanted}, but {type(self.codec).__name__} of the data gives {z.kind}")
        takes = {n: spec for one in self.steering for n, spec in one.takes(self.network).items()} | self.network.takes
        self.conditioning.check(takes, frozenset({SECOND_TIME}) & set(self.network.takes))

    @property
    def steering(self) -> tuple[Steering, ...]:
        """The adapters that change no parameter."""
        return tuple(one for one in self.adapters if not one.changes_parameters)

    @property
    def diffused(self) -> DataSpec:
        """The form of what is diffused."""
        return self.codec.spec(self.data)

    def of_size(self, height: int | None = None, width: int | None = None) -> "Model":
        """The model as one of pictures of these sides in pixels, by default as large as those of its data.

        One that was trained on prepared latents has the first stage that made them in front of it. Pictures with a side
        above `TILED` pixels are decoded in tiles, where the first stage has such parts, so that memory is bounded.

        Raises:
          UserError: data that is no pictures, or sides that first stage and network do not divide.
        """
        codec, data = self.codec.of_pictures, self.data
        if codec is not self.codec:
            rows, columns = (side * codec.factor for side in data.shape[:2])
            data = DataSpec(kind="pixels", shape=(rows, columns, codec.data_channels))
        shape = (height or data.shape[0], width or data.shape[1], data.shape[-1])
        if (height or width) and shape != data.shape:
            if data.kind == "tokens" or self.process.discrete:
                raise UserError(
                    "sizes are for pictures with continuous values, but this model draws tokens: leave them out"
                )
            self._require_sides(shape[:2], codec.factor)
        if max(shape[:2]) > TILED and data.kind == "pixels":
            codec = codec.decoding_in_tiles()
        parts = tuple(part.beside(shape) for part in self.conditioning.parts)
        told = dataclasses.replace(self.conditioning, parts=parts)
        return dataclasses.replace(self, data=dataclasses.replace(data, shape=shape), codec=codec, conditioning=told)

    def shift_from(self, trained: "Model") -> float:
        """How far times move towards noise for the size of this model's pictures, where `trained` has that of the
        training (`shift_of_size`)."""
        wanted, own = (math.prod(model.diffused.shape[:2]) for model in (self, trained))
        return shift_of_size(self.process.schedule, wanted, own)

    def _require_sides(self, sides: tuple[int, int], factor: int) -> None:
        unit = factor * self.network.side_unit
        for side in sides:
            if side % unit:
                near = " or ".join(str(size) for size in (side // unit * unit, (side // unit + 1) * unit) if size)
                raise UserError(
                    f"{sides[0]}x{sides[1]} pixels are not divisible by {unit}, {factor} of the first stage times "
                    f"{self.network.side_unit} of the network: take {near} instead of {side}"
                )

    @property
    def shown(self) -> DataSpec:
        """The form of what `decode` gives: of prepared latents pictures, else that of the data."""
        return self.codec.shown(self.data)

    @property
    def is_flow_map(self) -> bool:
        """Whether the network takes a second time."""
        return SECOND_TIME in self.network.takes

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input."""
        return GUIDANCE in self.network.takes

    def with_guidance(self, conditions: Conditions, scale: Array | float) -> Conditions:
        """The same conditions with this guidance scale, [] or [batch], for a network that takes one."""
        there = conditions[GUIDANCE]
        told = jnp.asarray(scale, there.dtype) - self.network.guidance_origin
        return {**conditions, GUIDANCE: jnp.broadcast_to(told, there.shape)}

    def init_params(self, key: Key[Array, ""], init_network: Callable[[Any, Key[Array, ""]], PyTree]) -> Params:
        """Parameters by group; `init_network(network, key)` makes the network's."""
        groups = {
            NETWORK: init_network(self.network, key),
            CODEC: self.codec.init_params(fold_name(key, CODEC)),
            **under(CONDITIONING, self.conditioning.init_params(fold_name(key, CONDITIONING))),
        }
        groups = {name: group for name, group in groups.items() if group}
        return {**groups, **self.init_adapters(key, groups)}

    def init_adapters(self, key: Key[Array, ""], base: Params) -> Params:
        """The groups of the adapters, which leave the base unchanged."""
        keys = {one.name: fold_name(key, f"{ADAPTERS}/{one.name}") for one in self.adapters}
        own = {one.name: one.init(keys[one.name], base) for one in self.adapters if one.changes_parameters}
        own |= {one.name: one.init(keys[one.name], base, self.network) for one in self.steering}
        return under(ADAPTERS, own)

    def adapted(self, params: Params, kind: str = "", dropout_keys: Key[Array, " batch"] | None = None) -> Params:
        """The groups of one kind, changed by the adapters; with keys, their dropout is active as in training."""
        if not self.adapters:
            return params
        own, groups = within(ADAPTERS, params), {n: tree for n, tree in params.items() if _is_of(n, kind)}
        for adapter in (one for one in self.adapters if one.changes_parameters):
            mine = {path: leaves for path, leaves in own[adapter.name].items() if _is_of(path, kind)}
            before, groups = groups, apply(groups, [mine])
            if dropout_keys is not None and adapter.share_dropped:
                groups = with_dropout(groups, adapter.share_dropped, dropout_keys, before)
        return groups

    def constrain(self, params: Params) -> Params:
        """The nearest parameters that the network allows, applied after an update."""
        return {**params, NETWORK: self.network.constrain(params[NETWORK])} if NETWORK in params else params

    def encode(self, params: Params, data: Array, key: BatchKey | None = None) -> Array:
        """A batch of data as it is diffused; with keys, a random draw if the codec is stochastic."""
        keys = None if key is None else key.fold_in(CODEC).per_example()
        return self.codec.encode(params.get(CODEC), data, keys)

    def decode(self, params: Params, z: Array) -> Array:
        """A batch of data from what was diffused."""
        return self.codec.decode(params.get(CODEC), z)

    def conditions(
        self,
        params: Params,
        batch: Mapping[str, Array],
        size: int,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Conditions:
        """The network's conditions for `size` examples, from the raw fields of their batch; with keys, as in
        training."""
        return self.conditioning(self._of_conditioning(params, dropout_keys), batch, size)

    def beside(self, params: Params, batch: Mapping[str, Array], size: int) -> Conditions:
        """The part of the conditions for which these raw fields suffice."""
        return self.conditioning.beside(self._of_conditioning(params), batch, size)

    def without(self, params: Params, conditions: Conditions, size: int) -> Conditions:
        """The conditions with all "asked" slots null; "told" slots stay."""
        return self.conditioning.without(self._of_conditioning(params), conditions, size)

    def null(self, params: Params, size: int) -> Conditions:
        """The network's conditions if nothing is asked or known."""
        return self.conditioning.null(self._of_conditioning(params), size)

    def dropped(self, params: Params, conditions: Conditions, key: BatchKey) -> Conditions:
        """The conditions after conditioning dropout, as in training."""
        return self.conditioning.drop(self._of_conditioning(params), conditions, key)

    def denoiser(
        self, params: Params, conditions: Conditions, dropout_keys: Key[Array, " batch"] | None = None
    ) -> Denoiser:
        """The denoiser with parameters, conditions and dropout masks bound: every call has the same masks.

        A network with two times is a flow map; without a second time it denoises, with s = t.
        """
        return self.process.denoiser(self._network_fn(params, conditions, dropout_keys))

    def sowing(
        self, params: Params, conditions: Conditions, dropout_keys: Key[Array, " batch"] | None = None
    ) -> Callable[[Array, Array], tuple[Any, Mapping[str, Array]]]:
        """The denoiser that also returns what the network sows (`Network.sows`)."""

        def denoise(xt: Array, t: Array) -> tuple[Any, Mapping[str, Array]]:
            sown: list[Mapping[str, Array]] = []
            network_fn = self._network_fn(params, conditions, dropout_keys, keep=sown.append)
            return self.process.denoiser(network_fn)(xt, t), sown[0]

        return denoise

    def _of_conditioning(self, params: Params, dropout_keys: Key[Array, " batch"] | None = None) -> dict[str, PyTree]:
        return within(CONDITIONING, self.adapted(params, CONDITIONING, dropout_keys))

    def _network_fn(self, params, conditions, dropout_keys, keep=None) -> Callable[..., Array]:
        """The network as a function of (x, time, second time); `keep` receives what it sows."""
        network, own = self.adapted(params, NETWORK, dropout_keys)[NETWORK], within(ADAPTERS, params)

        def network_fn(x, time, second_time=None):
            second = {SECOND_TIME: time if second_time is None else second_time} if self.is_flow_map else {}
            told = {**conditions, **second}
            for adapter in self.steering:
                told = adapter.conditions(self.network, own[adapter.name], x, time, told)
            inputs = (x, time, told, dropout_keys)
            if keep is None:
                return self.network.apply({"params": network}, *inputs)
            output, variables = self.network.apply({"params": network}, *inputs, mutable=["sown"])
            keep(variables["sown"])
            return output

        return network_fn


def _is_of(name: str, kind: str) -> bool:
    """Whether a group, or a path in it, belongs to a kind; adapters belong to none."""
    own = name.partition("/")[0]
    return own != ADAPTERS and kind in ("", own)
