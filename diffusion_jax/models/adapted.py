"""The kernel of a dense layer with a low-rank term beside it, which is never added up.

    y = x W + (x A) B,    W [inputs, outputs],  A [inputs, rank],  B [rank, outputs]

A tree of parameters may have such a kernel in the place of an array. Dense layers compute the two products; whatever
else reads the kernel as an array is given the sum. A frozen W so needs neither a copy nor a gradient.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float


@flax.struct.dataclass
class AdaptedKernel:
    """A kernel and its term.

    Attributes:
      kernel: the layer's own, [inputs, outputs]; the first leaf, by which Flax checks the shape.
      down: A. The columns of the kernel may be several layers side by side (query, key, value), each with an A.
      up: B of each.
    """

    kernel: Float[Array, "*layers inputs outputs"]
    down: Float[Array, "*layers parts inputs rank"]
    up: Float[Array, "*layers parts rank part_outputs"]

    @property
    def term(self) -> Float[Array, "*layers inputs outputs"]:
        """A B."""
        return side_by_side(jnp.einsum("...pir,...pro->...pio", self.down, self.up))

    def __jax_array__(self) -> Float[Array, "*layers inputs outputs"]:
        return self.kernel + self.term.astype(self.kernel.dtype)


def side_by_side(parts: Float[Array, "*layers parts inputs outputs"]) -> Float[Array, "*layers inputs all_outputs"]:
    """Kernels of the same inputs as one."""
    moved = jnp.moveaxis(parts, -3, -2)
    return moved.reshape(*moved.shape[:-2], -1)
