"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): new words of a pipeline, each one or several vectors.

    {"<fox-toy>": [k, width]}                       diffusers: the name of the tensor is the word
    {"emb_params": [k, width]}, string_to_param     A1111: the word is the name of the file, or is given
    {"clip_l": [k, width], "clip_g": [k, width]}    SDXL: one for each text encoder

A word of k vectors is k tokens, "<w>", "<w>_1" ... In a prompt "<w>" stands for all of them.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.parts import Parts
from diffusion_jax.weights.reading import read_state, write_state

_BY_ENCODER = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_NAMELESS = re.compile(r"emb_params|(?:.*\.)?string_to_param.*|\*")
_BESIDE = re.compile(r"(?:.*\.)?(?:string_to_token.*|step|sd_checkpoint.*|name)")
TABLE = "token"


def with_word(parts: Parts, path: Path, token: str = "") -> tuple[Parts, str]:
    """The parts with one more word, and the word.

    Args:
      parts: parts of a pipeline whose text encoders are CLIP's.
      path: the file of the word's vectors.
      token: the word; by default its name in the file, or the file's name.

    Raises:
      UserError: the file is damaged, no text encoder has vectors of this width, or the word exists already.
    """
    vectors, named = _read(path)
    token = token or named or path.stem
    if not token.strip() or re.search(r"\s", token):
        raise UserError(f"{token!r} cannot be a word of a prompt: give another, without spaces")
    models, tokenizers = dict(parts.models), dict(parts.tokenizers)
    for encoder, rows in vectors.items():
        name = encoder or _fitting(parts, rows, path)
        if name not in models or TABLE not in models[name].params:
            raise UserError(f"{path} has vectors for {name}, a CLIP text encoder that this model does not have")
        part, tokenizer = models[name], tokenizers[name.replace("text_encoder", "tokenizer")]
        table = part.params[TABLE]
        if rows.shape[1] != table.shape[1]:
            raise UserError(
                f"{path} has vectors of {rows.shape[1]} numbers, but {name} has vectors of {table.shape[1]}"
            )
        if tokenizer.size != len(table):
            raise UserError(f"{name} has {len(table)} tokens and its tokenizer {tokenizer.size}: no word can be added")
        tokenizers[name.replace("text_encoder", "tokenizer")] = tokenizer.with_word(token, len(rows))
        longer = jnp.concatenate([table, jnp.asarray(rows, table.dtype)])
        module = dataclasses.replace(part.module, vocabulary=len(longer))
        models[name] = dataclasses.replace(part, module=module, params={**part.params, TABLE: longer})
    return dataclasses.replace(parts, models=models, tokenizers=tokenizers, placed={}), token


def write_word(path: Path, word: str, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the rows of tables that were trained, as a file that `with_word` reads; `word` is a new one.

    Raises:
      UserError: there are more text encoders than such files hold.
    """
    rows = [np.asarray(own[name]["rows"], np.float32) for name in sorted(own)]
    if len(rows) > len(_BY_ENCODER):
        raise UserError(f"a file of textual inversion has vectors for two text encoders at most, not {len(rows)}")
    names = [word] if len(rows) == 1 else list(_BY_ENCODER)
    write_state(path, dict(zip(names, rows, strict=True)), {"format": "pt"})


def _read(path: Path) -> tuple[Mapping[str, np.ndarray], str]:
    """Vectors by text encoder ("" if the file does not name it), and the word if the file has it."""
    state = {name: np.asarray(x) for name, x in read_state(path).items() if not _BESIDE.fullmatch(name)}
    if not state:
        raise UserError(f"{path} has no vectors of a word")
    for name, rows in state.items():
        if rows.ndim == 1:
            state[name] = rows = rows[None]
        if rows.ndim != 2 or not rows.size or len(state) > 2 or not np.isfinite(rows.astype(np.float32)).all():
            raise UserError(
                f"{path} is not a file of textual inversion: {name} is {list(rows.shape)}, but must be finite vectors"
            )
    if set(state) <= set(_BY_ENCODER):
        return {_BY_ENCODER[name]: rows for name, rows in state.items()}, ""
    if len(state) > 1:
        raise UserError(f"{path} has vectors of several words, {', '.join(state)}: one file has one word")
    ((name, rows),) = state.items()
    return {"": rows}, "" if _NAMELESS.fullmatch(name) else name


def _fitting(parts: Parts, rows: np.ndarray, path: Path) -> str:
    """The text encoder whose tokens are as wide as the vectors."""
    tables = {name: part.params[TABLE] for name, part in parts.models.items() if TABLE in part.params}
    fitting = [name for name, table in tables.items() if table.shape[1] == rows.shape[1]]
    if not fitting:
        widths = ", ".join(f"{name} of {table.shape[1]}" for name, table in tables.items()) or "there is none"
        raise UserError(f"{path} has vectors of {rows.shape[1]} numbers, which no text encoder here takes: {widths}")
    return fitting[0]
