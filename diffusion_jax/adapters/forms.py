"""Forms of weight adapters: how a few own numbers change one frozen parameter.

The names of its leaves identify a form. For a kernel W [inputs, outputs], with its scale s = weight * alpha / rank:

    low rank    W + s A B                                             LoRA, Hu et al. 2021, arXiv:2106.09685, eq. 3
    magnitude   m (W + s A B) / ||W + s A B||, a norm per output       DoRA, Liu et al. 2024, arXiv:2402.09353, eq. 5
    hadamard    W + s (A1 B1) * (A2 B2)                               LoHa, Hyeon-Woo et al. 2021, arXiv:2108.06098
    kronecker   W + s kron(C, D), factors whole or of low rank        LoKr, Yeh et al. 2023, arXiv:2309.14859
    difference  W + s D
    rows        rows of a table instead of its own               Gal et al. 2022, arXiv:2208.01618

At s = 0 all of them are W itself, bit for bit. Kernels of all layers of a scan are stacked, and so are the leaves that
belong to them. A convolution [height, width, inputs, outputs] counts as height * width * inputs inputs. The columns of
a kernel may belong to several layers side by side (query, key and value); these are its parts.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.models.adapted import AdaptedKernel, side_by_side

Leaves = Mapping[str, Array]
"""The own numbers for one parameter."""
SCALE = "frozen_scale"
"""The leaf that holds s, [*layers, parts]: a constant for the optimizer, an argument of the program."""


def num_layers_axes(shape: tuple[int, ...]) -> int:
    """The number of leading axes of a kernel that count the layers of a scan: a kernel has two axes or four."""
    return len(shape) % 2


def as_matrices(kernel: Float[Array, "*layers any"]) -> Float[Array, "*layers inputs outputs"]:
    """A kernel, possibly of a convolution, with one axis of inputs."""
    layers = kernel.shape[: num_layers_axes(kernel.shape)]
    return kernel.reshape(*layers, -1, kernel.shape[-1])


def apply_form(own: Leaves, base: Array | AdaptedKernel) -> Array | AdaptedKernel:
    """The parameter for the network; for a dense layer's kernel with a low-rank term, the two in parts."""
    scale = own[SCALE]
    if "rows" in own:
        return _with_rows(own["rows"], own["frozen_first"], scale, jnp.asarray(base))
    if "magnitude" in own:
        kernel = jnp.asarray(base)
        changed = kernel + _term(own).reshape(kernel.shape)
        return jnp.where(_wide(scale != 0, kernel), _of_length(changed, own["magnitude"]), kernel)
    if set(own) == {"down", "up", SCALE} and _is_dense(base):
        return _beside(own, base)
    kernel = jnp.asarray(base)
    return kernel + _term(own).reshape(kernel.shape).astype(kernel.dtype)


def _is_dense(base: Array | AdaptedKernel) -> bool:
    return isinstance(base, AdaptedKernel) or base.ndim - num_layers_axes(base.shape) == 2


def _beside(own: Leaves, base: Array | AdaptedKernel) -> AdaptedKernel:
    """The kernel with the term added to its list of terms."""
    down, up = own["down"], own["up"] * own[SCALE][..., None, None]
    if not isinstance(base, AdaptedKernel):
        return AdaptedKernel(kernel=base, down=down, up=up)
    if base.down.shape[-3] != down.shape[-3]:
        base, (down, up) = _as_one_part(base.kernel, base.down, base.up), _one_part(down, up)
    down, up = jnp.concatenate([base.down, down], axis=-1), jnp.concatenate([base.up, up], axis=-2)
    return AdaptedKernel(kernel=base.kernel, down=down, up=up)


def _as_one_part(kernel: Array, down: Array, up: Array) -> AdaptedKernel:
    down, up = _one_part(down, up)
    return AdaptedKernel(kernel=kernel, down=down, up=up)


def _one_part(down: Array, up: Array) -> tuple[Array, Array]:
    """Factors of several parts as factors of the whole kernel: B has blocks, and zeros elsewhere."""
    parts, rank, outputs = up.shape[-3:]
    blocks = jnp.einsum("...pro,pq->...prqo", up, jnp.eye(parts, dtype=up.dtype))
    return side_by_side(down)[..., None, :, :], blocks.reshape(*up.shape[:-3], 1, parts * rank, parts * outputs)


def _term(own: Leaves) -> Float[Array, "*layers inputs outputs"]:
    """The term that is added to the kernel, [inputs, outputs]."""
    scale = own[SCALE][..., None, None]
    if "down" in own:
        return side_by_side(jnp.einsum("...pir,...pro->...pio", own["down"], own["up"] * scale))
    if "difference" in own:
        return own["difference"] * own[SCALE].reshape(*own[SCALE].shape[:-1], *_ones(own["difference"], own[SCALE]))
    if "left_down" in own:
        left, right = (own[f"{side}_down"] @ own[f"{side}_up"] for side in ("left", "right"))
        return side_by_side(left * right * scale)
    small, large = (_factor(own, name) for name in ("small", "large"))
    return side_by_side(_kronecker(small, large) * scale)


def _ones(difference: Array, scale: Array) -> tuple[int, ...]:
    return (1,) * (difference.ndim - scale.ndim + 1)


def _factor(own: Leaves, name: str) -> Array:
    return own[name] if name in own else own[f"{name}_down"] @ own[f"{name}_up"]


def _kronecker(small: Array, large: Array) -> Array:
    """kron over the last two axes."""
    product = jnp.einsum("...ab,...cd->...acbd", small, large)
    a, c, b, d = product.shape[-4:]
    return product.reshape(*product.shape[:-4], a * c, b * d)


def lengths(kernel: Float[Array, "*layers any"]) -> Float[Array, "*layers outputs"]:
    """The norm of the weights of each output."""
    matrices = as_matrices(kernel)
    return jnp.sqrt(jnp.square(matrices).sum(axis=-2))


def _of_length(kernel: Array, magnitude: Float[Array, "*layers outputs"]) -> Array:
    """The kernel with the norm of every output set, except where it is 0. No gradient flows through the norm (DoRA,
    section 4.3)."""
    norms = jax.lax.stop_gradient(lengths(kernel))
    factor = jnp.where(magnitude != 0, magnitude / norms, 1.0)
    layers = num_layers_axes(kernel.shape)
    return kernel * factor.reshape(*factor.shape[:layers], *(1,) * (kernel.ndim - layers - 1), factor.shape[-1])


def _wide(by_part: Array, kernel: Array) -> Array:
    """Whether any part of a layer is adapted, in a shape that broadcasts with the kernel."""
    found = by_part.any(axis=-1)
    return found.reshape(*found.shape, *(1,) * (kernel.ndim - found.ndim))


def _with_rows(rows: Array, first: Array, scale: Array, table: Array) -> Array:
    start = (first, *(jnp.int32(0),) * (table.ndim - 1))
    replaced = jax.lax.dynamic_update_slice(table, rows.astype(table.dtype), start)
    return jnp.where(scale.reshape(()) != 0, replaced, table)
