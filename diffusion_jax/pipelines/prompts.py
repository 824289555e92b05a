"""From prompts to conditions: for each family of models the encoders, and how they are used.

    sd       CLIP's last states after the final norm
    xl       the second-last states of two CLIPs side by side, and the second CLIP's projection
    sd3      the states of xl, padded with zeros to T5's width, then T5's states; both projections
    flux     T5's states; the pooled state of CLIP
    ideogram states of Qwen3 from 13 of its layers

The network attends to padding, as in the reference library, except in `ideogram`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from diffusion_jax.conditioning.published import as_flux, as_sd, as_sd3, as_xl
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.parts import Parts

Told = dict[str, Array]
_TAPS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)  # layers of Qwen3 that Ideogram 4 reads


@functools.partial(jax.jit, static_argnames=("module",))
def _apply(module: nn.Module, params: Any, tokens: Int[Array, "batch length"]) -> Any:
    return module.apply({"params": params}, tokens)


@dataclasses.dataclass(frozen=True)
class Asked:
    """Prompts for each of several encoders, `[encoder][row]`, with what is common to all.

    Attributes:
      texts: one list of prompts for each text encoder.
      skip: how many layers before the usual one to read; None is the usual one.
      length: tokens of T5 or Qwen3.
    """

    texts: tuple[tuple[str, ...], ...]
    skip: int | None = None
    length: int = 256


@dataclasses.dataclass
class Reader:
    """The encoders of a pipeline, and remarks on prompts that were cut."""

    parts: Parts
    remarks: list[str] = dataclasses.field(default_factory=list)

    def states(self, number: int, texts: Sequence[str], length: int | None = None) -> Any:
        """The output of the text encoder with this number (from 1) for each prompt."""
        suffix = f"_{number}" if number > 1 else ""
        tokenizer = self.parts.tokenizers[f"tokenizer{suffix}"]
        part = self.parts.models[f"text_encoder{suffix}"]
        unique = sorted(set(texts))
        length = length or tokenizer.max_length or part.module.length
        tokens, _ = tokenizer.rows(unique, length)
        cut = tokenizer.cut(unique, length)
        for rest in cut:
            if rest:
                self.remarks.append(
                    f"a prompt is longer than the {length} tokens that text_encoder{suffix} reads, and is cut; left "
                    f"out is: {rest!r}"
                )
        rows = np.array([unique.index(text) for text in texts])
        found = _apply(part.module, part.params, jnp.asarray(tokens))
        return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=1 if leaf.ndim == 4 else 0), found)

    def final_norm(self, number: int, hidden: Array) -> Array:
        """The final norm of a CLIP, applied to states other than the last."""
        part = self.parts.models[f"text_encoder{f'_{number}' if number > 1 else ''}"]
        norm = nn.LayerNorm(epsilon=part.module.norm_eps, use_fast_variance=False)
        return norm.apply({"params": part.params["norm"]}, hidden)

    @property
    def width(self) -> int:
        """Channels of the network's context."""
        return self.parts.models[self.parts.network].module.context_channels

    def has(self, number: int) -> bool:
        """Whether there is a text encoder with this number."""
        return f"text_encoder{f'_{number}' if number > 1 else ''}" in self.parts.models


def of_sd(reader: Reader, asked: Asked) -> Told:
    """Stable Diffusion 1 and 2."""
    states = reader.states(1, asked.texts[0])
    norm = functools.partial(reader.final_norm, 1)
    return as_sd([states], reader.width, asked.skip or 0, norm)


def of_xl(reader: Reader, asked: Asked) -> Told:
    """SDXL base, and its refiner, which has the second encoder only."""
    states = [reader.states(number, asked.texts[number - 1]) for number in (1, 2) if reader.has(number)]
    return as_xl(states, reader.width, asked.skip or 0)


def of_sd3(reader: Reader, asked: Asked) -> Told:
    """Stable Diffusion 3 and 3.5; without T5, zeros are used instead of its output."""
    states = [reader.states(number, asked.texts[number - 1]) for number in (1, 2)]
    nothing = jnp.zeros((len(asked.texts[0]), asked.length, reader.width))
    states.append(reader.states(3, asked.texts[2], asked.length) if reader.has(3) else nothing)
    return as_sd3(states, reader.width, asked.skip or 0)


def of_flux(reader: Reader, asked: Asked) -> Told:
    """FLUX.1."""
    states = [reader.states(1, asked.texts[0]), reader.states(2, asked.texts[1], asked.length)]
    return as_flux(states, reader.width)


def of_ideogram(reader: Reader, asked: Asked) -> Told:
    """Ideogram 4: prompts as a chat, at the end of their rows, and a mask."""
    tokenizer, part = reader.parts.tokenizers["tokenizer"], reader.parts.models["text_encoder"]
    rows = [
        tokenizer.encode([f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"])[0] for text in asked.texts[0]
    ]
    longest = max(map(len, rows))
    if longest > asked.length:
        raise UserError(f"a prompt has {longest} tokens, more than max_sequence_length={asked.length}: shorten it")
    tokens = np.zeros((len(rows), asked.length), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    hidden = _apply(part.module, part.params, jnp.asarray(tokens)).hidden
    tapped = jnp.stack([hidden[layer + 1] for layer in _TAPS], axis=-1)
    features = tapped.reshape(*tokens.shape, -1)
    lengths = np.array([len(ids) for ids in rows])
    # the prompt at the start of a row is moved to its end
    places = np.arange(asked.length)[None] - (asked.length - lengths)[:, None]
    mask = places >= 0
    moved = jnp.take_along_axis(features, jnp.asarray(np.maximum(places, 0))[..., None], axis=1)
    return {"context": jnp.where(mask[..., None], moved, 0.0), "context_mask": jnp.asarray(mask)}
