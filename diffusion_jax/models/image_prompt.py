"""Pictures as prompts of a text-conditioned U-Net: IP-Adapter (Ye et al. 2023, arXiv:2308.06721).

A picture encoder gives a vector, or the states of its patches. They become a few tokens as wide as the text's, for
which every attention to the text gets an additional key and value (`cross_attention.py`):

    base  tokens = norm(reshape(W e + b)),  e the projected vector of CLIP
    plus  tokens: learned queries that attend to the last but one states, the Perceiver's resampler
          (Alayrac et al. 2022, arXiv:2204.14198)

The adapter's parameters are one tree, {"projection": ..., "attention": {transformer: {"key", "value"}}}, with kernels
stacked over the blocks of a transformer. No parameter of the U-Net changes.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.models.attention import attention
from diffusion_jax.models.conditional_encoder import Stage
from diffusion_jax.models.encoders.vision import VisionStates
from diffusion_jax.models.layers import Dense

PROJECTION, ATTENTION = "projection", "attention"
Features = Float[Array, "pictures tokens width"]
_HEAD = 64  # channels of a head of the resampler, whatever its width
_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class ImageProjection(nn.Module, kw_only=True):
    """Turns a picture's vector into tokens.

    Attributes:
      tokens: number of tokens.
      width: width of a token, equal to that of the text's.
    """

    reads_patches: ClassVar[bool] = False

    tokens: int = 4
    width: int

    @staticmethod
    def features(states: VisionStates) -> Features:
        """The part of an encoder's states that it reads, one row for the vector."""
        return states.vector[:, None]

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "pictures tokens width"]:
        h = Dense(self.tokens * self.width, name="proj")(features[:, 0])
        return _norm(name="norm")(h.reshape(-1, self.tokens, self.width))


class Resampler(nn.Module, kw_only=True):
    """Turns the states of a picture's patches into tokens: queries attend to them and to each other, in several layers.

    Attributes:
      tokens: number of tokens.
      width: width of a token, equal to that of the text's.
      hidden: width of the layers.
      depth: layers.
      heads: heads with 64 channels each.
      hidden_units: hidden units of the MLPs; 0: 4 times the width.
    """

    reads_patches: ClassVar[bool] = True

    tokens: int = 16
    width: int
    hidden: int = 768
    depth: int = 4
    heads: int = 12
    hidden_units: int = 0

    @staticmethod
    def features(states: VisionStates) -> Features:
        """The part of an encoder's states that it reads: the last but one."""
        return states.hidden[-2]

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "pictures tokens width"]:
        latents = self.param("latents", nn.initializers.normal(self.hidden**-0.5), (self.tokens, self.hidden))
        h = jnp.broadcast_to(latents, (len(features), *latents.shape))
        x = Dense(self.hidden, name="proj_in")(features)
        for layer in range(self.depth):
            h = ResamplerLayer(heads=self.heads, hidden_units=self.hidden_units, name=f"layer_{layer}")(h, x)
        return _norm(name="norm_out")(Dense(self.width, name="proj_out")(h))


class ResamplerLayer(nn.Module, kw_only=True):
    """Attention of queries to states and to themselves, and an MLP, each on a residual branch."""

    heads: int
    hidden_units: int

    @nn.compact
    def __call__(self, h: Features, x: Features) -> Features:
        width, inner = h.shape[-1], self.heads * _HEAD
        dense = functools.partial(Dense, use_bias=False)
        x, own = _norm(name="norm_states")(x), _norm(name="norm_queries")(h)
        both = jnp.concatenate([x, own], axis=1)
        parts = [dense(inner, name="query")(own), *jnp.split(dense(2 * inner, name="key_value")(both), 2, axis=-1)]
        query, key, value = (part.reshape(*part.shape[:2], self.heads, _HEAD) for part in parts)
        h += dense(width, name="out")(attention(query, key, value).reshape(*h.shape[:2], inner))
        y = nn.gelu(dense(self.hidden_units or 4 * width, name="mlp_in")(_norm(name="norm_mlp")(h)), approximate=False)
        return h + dense(width, name="mlp_out")(y)


def projection_shapes(projection: nn.Module, features: int) -> PyTree:
    """The tree of a projection's parameters for states with so many channels; nothing is allocated."""
    states = jax.ShapeDtypeStruct((1, 1, features), jnp.float32)
    return jax.eval_shape(lambda states: projection.init(jax.random.key(0), states)["params"], states)


def attention_shapes(stages: Sequence[Stage], width: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The kernels of keys and values, for tokens of this width, in a U-Net's transformers."""
    return {
        stage.attention_name: {
            name: jax.ShapeDtypeStruct((stage.depth, width, stage.features), jnp.float32) for name in ("key", "value")
        }
        for stage in stages
    }


def init_image_prompt(
    projection: nn.Module, stages: Sequence[Stage], features: int, key: Key[Array, ""], base: PyTree
) -> dict[str, PyTree]:
    """Initial parameters of an adapter: keys and values are copied from the U-Net `base`, so its tokens are read like
    text."""
    own = projection.init(key, jnp.zeros((1, 1, features), jnp.float32))["params"]
    copied = {
        stage.attention_name: {
            name: jnp.asarray(base[stage.attention_name]["blocks"]["cross"][name]["kernel"], jnp.float32)
            for name in ("key", "value")
        }
        for stage in stages
    }
    return {PROJECTION: own, ATTENTION: copied}


def keys_and_values(
    own: Mapping[str, PyTree], tokens: Float[Array, "batch tokens width"], scales: Mapping[str, float | Array]
) -> dict[str, tuple[Array, Array]]:
    """One adapter's part of the slot "image_prompt": for each transformer a pair [batch, blocks, tokens, width].

    Args:
      own: kernels of keys and values, {transformer: {"key", "value"}}.
      tokens: tokens of an example's pictures, side by side.
      scales: s of each transformer, multiplied into the values; at 0 the U-Net is unchanged.
    """
    return {
        name: (
            jnp.einsum("btw,dwc->bdtc", tokens, kernels["key"]),
            jnp.einsum("btw,dwc->bdtc", tokens, kernels["value"]) * scales[name],
        )
        for name, kernels in own.items()
    }


def together(prompts: Sequence[Mapping[str, tuple[Array, Array]]]) -> dict[str, tuple[tuple[Array, Array], ...]]:
    """The slot "image_prompt" for several adapters, each attended to separately."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt)
    return {name: tuple(prompt[name] for prompt in prompts if name in prompt) for name in names}
