"""A text as condition: its tokens become vectors to attend to, and one vector for the whole text.

    "a red star"  --prepare-->  text_tokens, text_mask  --encoder-->  context [batch, length, width] with its mask,
                                                                      pooled [batch, width]
    'the word "ab7"'  --prepare-->  text_canvas  -->  canvas [batch, size, size, 1], its letters (`data.glyphs.canvas`)

The null text is "", which is encoded like every other text. An empty prompt gives the null condition bit for bit,
because its rows are copied from the null text and not computed again.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Key, PyTree

from diffusion_jax.conditioning.conditioner import CONDITIONERS, Batch, Conditioner, Conditions, Form
from diffusion_jax.data.glyphs import canvases
from diffusion_jax.data.prompts import TOKENIZERS, PromptTokenizer
from diffusion_jax.domains import Bounds
from diffusion_jax.models.encoders import TEXT_ENCODERS, Encoder, encode, init_encoder
from diffusion_jax.specs import ConditionSpec

CanvasSide = Annotated[int, Bounds(low=0, high=2**12)]
_SHOWN = 8  # at most so many unknown words are named
Spec = str | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Conditioner):
    """A caption or prompt for each example: the slot "context" with its mask and, optionally, "pooled" and "canvas".

    Attributes:
      tokenizer: turns text into numbers.
      encoder: turns numbers into vectors; its parameters belong to this conditioner.
      length: tokens of a text, with the start and end tokens; longer texts are cut.
      pooled: whether the slot "pooled" is filled.
      dropout: share of examples that lose only their text in training, besides those that lose everything asked.
      canvas: side in pixels of a picture of the letters in quotation marks, the slot "canvas"; 0: there is none.
      data_dir: folder with the fonts of a canvas; None takes the data's default directory. It is not part of the model.
    """

    tokenizer: PromptTokenizer
    encoder: Encoder
    length: int
    pooled: bool = True
    dropout: float = 0.0
    canvas: int = 0
    data_dir: str | None = dataclasses.field(default=None, compare=False, metadata={"described": False})

    def __post_init__(self):
        self.tokenizer.rows([""], self.length)  # raises an error if the start and end tokens do not fit

    @property
    def fields(self) -> Mapping[str, Form]:
        drawn = {"text_canvas": ((self.canvas, self.canvas, 1), "uint8")} if self.canvas else {}
        return {"text_tokens": ((self.length,), "int32"), "text_mask": ((self.length,), "bool"), **drawn}

    @property
    def prepares(self) -> tuple[str, ...]:
        return ("text",)

    @property
    def gives(self) -> Mapping[str, ConditionSpec]:
        width = self.encoder.channels
        pooled = {"pooled": ConditionSpec(shape=(width,))} if self.pooled else {}
        drawn = {"canvas": ConditionSpec(shape=(self.canvas, self.canvas, 1))} if self.canvas else {}
        return {"context": ConditionSpec(shape=(None, width)), **pooled, **drawn}

    @property
    def words(self) -> tuple[str, ...]:
        return self.tokenizer.words

    def init_params(self, key: Key[Array, ""]) -> PyTree:
        return init_encoder(self.encoder, key)

    def prepare(self, raw: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Tokens and mask of each text, and its canvas.

        Raises:
          UserError: see the tokenizer and `canvases`.
        """
        tokens, mask = self.tokenizer.rows(raw["text"], self.length)
        drawn = {"text_canvas": canvases(raw["text"], self.canvas, self.data_dir)} if self.canvas else {}
        return {"text_tokens": tokens, "text_mask": mask, **drawn}

    def __call__(self, params: PyTree, batch: Batch, size: int) -> Conditions:
        tokens, mask = self.field(batch, "text_tokens"), self.field(batch, "text_mask")
        found = self._slots(params, tokens, mask)
        empty_tokens, empty_mask = self.tokenizer.rows([""], self.length)
        empty = jnp.all(jnp.where(empty_mask, tokens, 0) == np.where(empty_mask, empty_tokens, 0), axis=1)
        empty &= jnp.all(mask == empty_mask, axis=1)
        null = self.null(params, size)
        slots = {
            name: jnp.where(empty.reshape(-1, *(1,) * (value.ndim - 1)), null[name], value)
            for name, value in found.items()
        }
        if self.canvas:
            slots["canvas"] = self.field(batch, "text_canvas").astype(jnp.float32) / 255  # of the empty text zeros
        return slots

    def null(self, params: PyTree, size: int) -> Conditions:
        slots = self._slots(params, *map(jnp.asarray, self.tokenizer.rows([""], self.length)))
        if self.canvas:
            slots["canvas"] = jnp.zeros((1, self.canvas, self.canvas, 1), jnp.float32)
        return {name: jnp.broadcast_to(value, (size, *value.shape[1:])) for name, value in slots.items()}

    def _slots(self, params: PyTree, tokens: Array, mask: Array) -> Conditions:
        context, pooled = encode(self.encoder, params, tokens, mask)
        slots = {"context": context, "context_mask": mask}
        return {**slots, "pooled": pooled} if self.pooled else slots

    def remarks(self, texts: Iterable[str], what: str) -> list[str]:
        """Notes about texts that are not read as they stand: texts that are cut, and unknown words.

        Args:
          texts: captions or prompts.
          what: the plural noun for them in the notes.
        """
        room, count, cut, longest, unknown = self.tokenizer.longest(self.length), 0, 0, 0, {}
        for text in texts:
            count += 1
            (tokens,) = self.tokenizer.encode([text])
            cut, longest = cut + (len(tokens) > room), max(longest, len(tokens))
            for word in self.tokenizer.unknown(text):
                unknown[word] = unknown.get(word, 0) + 1
        said = []
        if cut:
            said.append(
                f"{cut:,} of {count:,} {what} are longer than the {room} tokens that conditioning.text.length="
                f"{self.length} has place for, and are cut; the longest has {longest}"
            )
        if unknown:
            named = ", ".join(sorted(unknown, key=lambda word: (-unknown[word], word))[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
            said.append(f"words in {what} that are not in the word list, and all mean the same here: {named}{more}")
        return said


@CONDITIONERS.register(
    "text",
    example={
        "tokenizer": {"name": "words", "words": ("a", "red", "star"), "most": 4},
        "encoder": {"name": "transformer", "width": 8, "depth": 1, "num_heads": 2},
        "length": 6,
    },
)
def text(
    *,
    tokenizer: Spec | PromptTokenizer = "words",
    encoder: Spec | Encoder = "transformer",
    length: Annotated[int, Bounds(low=1, high=2**14)] = 64,
    pooled: bool = True,
    dropout: float = 0.0,
    canvas: CanvasSide = 0,
    dtype: DTypeLike = jnp.float32,
    data_dir: str | None = None,
) -> Text:
    """Captions and prompts; tokenizer and encoder by name, {"name": ..., **arguments}, or as objects."""
    if not isinstance(tokenizer, PromptTokenizer):
        tokenizer = TOKENIZERS.build(tokenizer)
    if not isinstance(encoder, Encoder):
        encoder = TEXT_ENCODERS.build(encoder, vocabulary=tokenizer.size, dtype=dtype)
    given = {"length": length, "pooled": pooled, "dropout": dropout, "canvas": canvas, "data_dir": data_dir}
    return Text(tokenizer=tokenizer, encoder=encoder, **given)
