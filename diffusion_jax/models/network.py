"""The base of all networks, and the functions that prepare a network for training.

A network is a Flax linen module called as `module.apply({"params": p}, x, time, conditions, dropout_keys)`.
Linen modules are dataclasses, so a network is hashable and may be a static argument of jit.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.counter_prng import counter_key
from diffusion_jax.errors import UserError
from diffusion_jax.specs import ConditionSpec, mask_name

Conditions = Mapping[str, PyTree]


class Network(nn.Module, kw_only=True):
    """Base of all networks: the shape of the data, and the slots.

    Subclasses define `__call__(x, time, conditions, dropout_keys=None)`:
      x: [batch, height, width, channels].
      time: float32 [batch], the already scaled input of the time embedding.
      conditions: the slots in `takes`, each [batch, ...], and masks for those of any length (`ConditionSpec`).
      dropout_keys: one key per example switches dropout on; None means deterministic.
      Returns float32 [batch, height, width, output channels].

    Attributes:
      image_size: height and width of the images.
      image_channels: channels of the images.
      num_classes: classes of the data; index num_classes is the null class. 0: unconditional.
      num_times: 2 for a network that takes a second time, as flow maps need: it has the units of `time`, and enters as
        the embedding of the interval time - second_time.
      dtype: type in which activations are computed; parameters are float32 always.
      zero_at_init: whether the class promises that a fresh network outputs zero.
      published_without_class: whether published weights of such networks were also trained without the class.
      is_convolutional: whether it convolves, which XLA for CPU does slowly inside a loop.
      guidance_origin: number subtracted from a guidance scale before it enters the slot "guidance".
    """

    zero_at_init: ClassVar[bool] = True
    is_convolutional: ClassVar[bool] = False
    published_without_class: ClassVar[bool] = False
    guidance_origin: ClassVar[float] = 1.0

    image_size: int
    image_channels: int
    num_classes: int = 0
    num_times: int = 1
    dtype: DTypeLike = jnp.float32

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return (self.image_size, self.image_size, self.image_channels)

    @property
    def takes(self) -> dict[str, ConditionSpec]:
        """The slots: "label" if there are classes, "second_time" if there are two times, and further ones by
        network."""
        slots = {}
        if self.num_classes:
            slots["label"] = ConditionSpec(dtype="int32", num_values=self.num_classes + 1)
        if self.num_times == 2:
            slots["second_time"] = ConditionSpec(role="told")
        return slots

    @property
    def reads_tokens(self) -> bool:
        """Whether x is tokens themselves, int32 [batch, length], instead of numbers."""
        return False

    @property
    def side_unit(self) -> int:
        """What the sides of an image must divide by; 1 where the network pads what it can not divide."""
        return 1

    @property
    def sows(self) -> dict[str, tuple[int, ...]]:
        """The values that the network puts into its collection "sown" on request: name -> shape for one example."""
        return {}

    @nn.nowrap
    def example_data(self, batch_size: int, image_shape: tuple[int, int, int] | None = None) -> Array:
        """Zeros in the form of the data, by default with the network's own shape."""
        return jnp.zeros((batch_size, *(image_shape or self.image_shape)), jnp.float32)

    @nn.nowrap
    def slots_beside(self, x: Array, conditions: Conditions) -> dict[str, ConditionSpec]:
        """`takes` for these inputs: a network for images of any size has slots whose size follows from theirs."""
        del x, conditions
        return self.takes

    @nn.nowrap
    def check_inputs(self, x: Array, time: Array, conditions: Conditions) -> None:
        """Raise UserError if the shapes or the slots are not those that the network is built for."""
        name = type(self).__name__
        if x.ndim != 4 or x.shape[-1] != self.image_channels:
            raise UserError(f"{name} takes images [batch, height, width, {self.image_channels}], got {x.shape}")
        if time.shape != x.shape[:1]:
            raise UserError(f"{name} takes one time per example, [{x.shape[0]}], got {time.shape}")
        takes = self.slots_beside(x, conditions)
        masks = {mask_name(slot): slot for slot, spec in takes.items() if spec.has_mask}
        if set(conditions) - set(masks) != set(takes):
            raise UserError(
                f"{name} with num_classes={self.num_classes} and num_times={self.num_times} takes the conditions "
                f"{sorted(takes)}, got {sorted(conditions)}; set num_classes or num_times, or give what it takes"
            )
        for slot, spec in takes.items():
            spec = spec.beside(x.shape[1:])
            shape = conditions[slot].shape
            if shape[:1] != x.shape[:1] or not spec.fits(shape[1:]):
                raise UserError(f"{name} takes {slot} as [{x.shape[0]}, {str(list(spec.shape))[1:]}, got {list(shape)}")
        for mask, slot in masks.items():
            wanted = conditions[slot].shape[:2]
            if mask in conditions and (conditions[mask].shape != wanted or conditions[mask].dtype != bool):
                found = conditions[mask]
                raise UserError(f"{name} takes {mask} as bool {list(wanted)}, got {found.dtype} {list(found.shape)}")

    @nn.nowrap
    def constrain(self, params: PyTree) -> PyTree:
        """The nearest parameters that the network allows, applied after every optimizer step; here, the same."""
        return params


def example_inputs(
    module: Network, batch_size: int = 1, image_shape: tuple[int, int, int] | None = None
) -> tuple[Array, Float[Array, " batch"], Conditions]:
    """Neutral inputs with the shapes that `module` takes: (x, time, conditions); (x, time) for a classifier."""
    if not isinstance(module, Network):
        size = module.image_size
        return jnp.zeros((batch_size, size, size, module.image_channels)), jnp.zeros((batch_size,))
    x = module.example_data(batch_size, image_shape)
    time = jnp.zeros((batch_size,), jnp.float32)
    takes = {name: spec.beside(x.shape[1:]) for name, spec in module.takes.items()}
    return x, time, {name: null_value(spec, batch_size) for name, spec in takes.items()}


def null_value(spec: ConditionSpec, batch_size: int) -> Array:
    """The last value for whole numbers, zeros for the rest; an axis of any length gets length 2, so that attention has
    a choice."""
    shape = (batch_size, *(2 if length is None else length for length in spec.shape))
    return jnp.full(shape, max(spec.num_values - 1, 0), spec.dtype)


def init_params(module: Network, key: Key[Array, ""], image_shape: tuple[int, int, int] | None = None) -> PyTree:
    """Initial parameters, float32, as a function of the module and the key, whatever the devices and the sharding.

    May be called inside jit with out_shardings, so that a large network is created sharded.
    """

    @jax.jit
    def init(key):
        inputs = example_inputs(module, 1, image_shape)
        return module.init({"params": counter_key(key)}, *inputs)["params"]

    return init(key)


def is_frozen(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path of a tree is a constant that is drawn once, such as a random frequency."""
    return bool(path) and str(getattr(path[-1], "key", path[-1])).startswith("frozen_")


def parameter_shapes(module: nn.Module) -> PyTree:
    """The tree of `init_params` as ShapeDtypeStruct: nothing is allocated."""
    return jax.eval_shape(lambda: init_params(module, jax.random.key(0)))


def count_parameters(module: nn.Module, *, frozen: bool = False) -> int:
    """The number of trainable parameters, from shapes alone; with `frozen` the constants count too."""
    leaves = jax.tree_util.tree_leaves_with_path(parameter_shapes(module))
    return sum(math.prod(leaf.shape) for path, leaf in leaves if frozen or not is_frozen(path))
