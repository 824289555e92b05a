"""The kernel of a dense layer with a low-rank term; the two are never summed.

    y = x W + (x A) B,    W [inputs, outputs],  A [inputs, rank],  B [rank, outputs]

A tree of parameters may have such a kernel instead of an array. Dense layers compute the two products; any other code
that reads the kernel as an array gets the sum. So a frozen W needs neither a copy nor a gradient.

With dropout y = x W + (d(x) A) B, where d zeroes a share of the numbers of x and scales up the others (as in the code
of Hu et al. 2021, arXiv:2106.09685). This is not a sum of kernels, and reading it as an array is an error.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.errors import UserError


@flax.struct.dataclass
class AdaptedKernel:
    """A kernel and its low-rank term.

    Attributes:
      kernel: the layer's own, [inputs, outputs]; the first leaf, by which Flax checks the shape.
      down: A. The columns of the kernel may belong to several layers side by side (query, key, value), each with its
        own A.
      up: B, one for each A.
      keys: keys of the dropout masks, one for each example; None: no dropout.
      dropout: share of the numbers of x that is zeroed.
    """

    kernel: Float[Array, "*layers inputs outputs"]
    down: Float[Array, "*layers parts inputs rank"]
    up: Float[Array, "*layers parts rank part_outputs"]
    keys: Key[Array, "*layers batch"] | None = None
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)

    def dropped(self, x: Float[Array, "batch ... inputs"]) -> Float[Array, "batch ... inputs"]:
        """The input of A: x with a dropout mask for each example, from the example's key.

        Raises:
          UserError: the first axis of x is not that of the examples.
        """
        if self.keys is None:
            return x
        if x.shape[:1] != self.keys.shape:
            raise UserError(
                f"dropout of an adapter: a layer receives {list(x.shape)}, and there are {self.keys.shape[0]} "
                "examples; leave this layer out of the targets, or set dropout=0"
            )
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.dropout, x.shape[1:]))(self.keys)
        return jnp.where(keep, x / (1.0 - self.dropout), 0.0).astype(x.dtype)

    @property
    def term(self) -> Float[Array, "*layers inputs outputs"]:
        """A B."""
        return side_by_side(jnp.einsum("...pir,...pro->...pio", self.down, self.up))

    def __jax_array__(self) -> Float[Array, "*layers inputs outputs"]:
        if self.keys is not None:
            raise UserError(
                "dropout of an adapter: a layer reads its kernel as one array, which has no dropout; set dropout=0, or "
                "parallel.tensor=1"
            )
        return self.kernel + self.term.astype(self.kernel.dtype)


def side_by_side(parts: Float[Array, "*layers parts inputs outputs"]) -> Float[Array, "*layers inputs all_outputs"]:
    """Concatenate the columns of kernels with the same inputs."""
    moved = jnp.moveaxis(parts, -3, -2)
    return moved.reshape(*moved.shape[:-2], -1)
