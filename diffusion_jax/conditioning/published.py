"""Texts as published image generators take them: read by one to three encoders, whose states are combined.

    sd      CLIP's last states after the final norm
    xl      the last but one states of two CLIPs side by side, and the second CLIP's projection
    sd3     the same from two CLIPs, padded with zeros to T5's width, followed by T5's states; both projections
    flux    T5's states; CLIP's pooled state

Attention includes padding, as in the reference.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from diffusion_jax.conditioning.conditioner import Batch, Conditioner, Conditions, Form
from diffusion_jax.counter_prng import counter_key
from diffusion_jax.data.folder_tokenizers import FolderTokenizer
from diffusion_jax.errors import UserError
from diffusion_jax.specs import ConditionSpec

States = Sequence[Any]
"""The outputs of each encoder."""


def before(hidden: Array, behind: int) -> Array:
    """The states `behind` layers before the last, of [depth + 1, batch, length, width].

    Raises:
      UserError: there are not so many layers.
    """
    if behind > len(hidden):
        raise UserError(f"clip_skip leaves out more layers than the text encoder has, {len(hidden) - 1}")
    return hidden[-behind]


def as_sd(states: States, width: int, skip: int = 0, norm: Callable[[Array], Array] = lambda x: x) -> Conditions:
    """The states `skip` layers before the last, after the final norm, `norm`."""
    return {"context": norm(before(states[0].hidden, skip + 1)) if skip else states[0].last}


def as_xl(states: States, width: int, skip: int = 0) -> Conditions:
    """Combine two encoders, or use the second alone."""
    context = [before(one.hidden, skip + 2) for one in states]
    return {"context": jnp.concatenate(context, axis=-1), "pooled": states[-1].projected}


def as_sd3(states: States, width: int, skip: int = 0) -> Conditions:
    """Combine two CLIPs with T5 or its replacement."""
    first, second, long = states
    clip = jnp.concatenate([before(one.hidden, skip + 2) for one in (first, second)], axis=-1)
    clip = jnp.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[-1])))
    pooled = jnp.concatenate([first.projected, second.projected], axis=-1)
    return {"context": jnp.concatenate([clip, long], axis=1), "pooled": pooled}


def as_flux(states: States, width: int, skip: int = 0) -> Conditions:
    """Combine CLIP and T5."""
    return {"context": states[1], "pooled": states[0].pooled}


READINGS: Mapping[str, Callable[..., Conditions]] = {"sd": as_sd, "xl": as_xl, "sd3": as_sd3, "flux": as_flux}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedText(Conditioner):
    """A caption or prompt for each example, read by published encoders.

    Attributes:
      reading: how their states are combined, a key of `READINGS`.
      encoders: the networks.
      tokenizers: one for each encoder.
      lengths: tokens of a text, for each encoder.
      width: channels of the slot "context".
      pooled: channels of the slot "pooled"; 0: there is no such slot.
      zero_null: whether the null condition is zeros, and not an empty text.
      without_long: tokens of zeros instead of T5's, for a model of "sd3" without T5; 0: it has T5.
    """

    reading: str
    encoders: tuple[nn.Module, ...]
    tokenizers: tuple[FolderTokenizer, ...]
    lengths: tuple[int, ...]
    width: int
    pooled: int = 0
    zero_null: bool = False
    without_long: int = 0

    @property
    def fields(self) -> Mapping[str, Form]:
        return {f"text_tokens_{i}": ((length,), "int32") for i, length in enumerate(self.lengths)}

    @property
    def prepares(self) -> tuple[str, ...]:
        return ("text",)

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        pooled = {"pooled": ConditionSpec(shape=(self.pooled,))} if self.pooled else {}
        return {"context": ConditionSpec(shape=(None, self.width)), **pooled}

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        keys = jax.random.split(key, len(self.encoders))
        return {
            f"encoder_{i}": encoder.init({"params": counter_key(one)}, jnp.zeros((1, 2), jnp.int32))["params"]
            for i, (encoder, one) in enumerate(zip(self.encoders, keys, strict=True))
        }

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Tokens of each text for each encoder."""
        parts = zip(self.tokenizers, self.lengths, strict=True)
        return {f"text_tokens_{i}": tokenizer.rows(raw["text"], n)[0] for i, (tokenizer, n) in enumerate(parts)}

    def remarks(self, texts: Iterable[str], what: str) -> list[str]:
        """Notes about texts that are cut."""
        texts, said = list(texts), []
        for i, (tokenizer, length) in enumerate(zip(self.tokenizers, self.lengths, strict=True)):
            cut = sum(map(bool, tokenizer.cut(texts, length)))
            if cut:
                said.append(
                    f"{cut:,} of {len(texts):,} {what} are longer than the {length} tokens that text encoder {i + 1} "
                    "reads, and are cut"
                )
        return said

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        states = [
            encoder.apply({"params": params[f"encoder_{i}"]}, self.field(batch, f"text_tokens_{i}"))
            for i, encoder in enumerate(self.encoders)
        ]
        if self.without_long:
            states.append(jnp.zeros((size, self.without_long, self.width)))
        return READINGS[self.reading](states, self.width)

    def null(self, params: PyTree, size: int) -> Conditions:
        found = self(params, self.prepare({"text": [""]}), 1)
        found = jax.tree.map(jnp.zeros_like, found) if self.zero_null else found
        return {name: jnp.broadcast_to(value, (size, *value.shape[1:])) for name, value in found.items()}
