"""Guidance: turning a conditional model into a Denoiser that leans towards its condition.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) extrapolates from the unconditional prediction through
the conditional one,

    (1)   guided = unconditional + guidance_scale (conditional - unconditional),

so scale 1 is the conditional model, scale 0 the unconditional one, and larger scales sharpen. (Ho & Salimans write
w = scale - 1.) For one xt every kind of prediction is an affine image of every other, so (1) may be taken in x0 and in
noise at once and means the same in all kinds.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import Denoiser, Prediction

Conditioning = Mapping[str, Array]
ConditionalDenoiser = Callable[[Float[Array, "batch ..."], Float[Array, "*batch"], Conditioning], Prediction]


def classifier_free(
    denoise_conditional: ConditionalDenoiser, conditioning: Conditioning, null: Conditioning, guidance_scale: float
) -> Denoiser:
    """The Denoiser of eq. (1).

    The two predictions come from one call of the network with the batch doubled (unconditional half first): one
    function evaluation in a sampler's NFE, twice the work of one. At scale 1 and 0 only the half that counts is
    evaluated, which is why the scale is a Python number and static under jit.

    Args:
      denoise_conditional: (xt, t, conditioning) -> Prediction.
      conditioning: arrays [batch, ...].
      null: what stands for "no condition", of the same structure and shapes.
      guidance_scale: the scale of (1).

    Raises:
      UserError: `conditioning` and `null` differ in structure or shapes.
    """
    shapes, null_shapes = (jax.tree.map(jnp.shape, dict(tree)) for tree in (conditioning, null))
    if shapes != null_shapes:
        raise UserError(f"conditioning and null must have the same shapes, got {shapes} and {null_shapes}")
    if guidance_scale in (0.0, 1.0):
        only = conditioning if guidance_scale == 1.0 else null
        return lambda xt, t: denoise_conditional(xt, t, only)
    doubled = jax.tree.map(_interleave, dict(null), dict(conditioning))

    def denoise(xt: Float[Array, "batch ..."], t: Float[Array, "*batch"]) -> Prediction:
        t = jnp.asarray(t)
        both = denoise_conditional(_interleave(xt, xt), _interleave(t, t) if t.ndim else t, doubled)
        return jax.tree.map(lambda prediction: _extrapolate(prediction, guidance_scale), both)

    return denoise


def _interleave(a: Array, b: Array) -> Array:
    """Rows a_0, b_0, a_1, b_1, ..."""
    return jnp.stack([a, b], axis=1).reshape(-1, *jnp.shape(a)[1:])


def _extrapolate(both: Array, guidance_scale: float) -> Array:
    pairs = both.reshape(-1, 2, *both.shape[1:])
    unconditional, conditional = pairs[:, 0], pairs[:, 1]
    return unconditional + guidance_scale * (conditional - unconditional)
