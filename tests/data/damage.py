"""Damage files in tests: truncated, with flipped bytes, empty, of another encoding or type, or missing."""

import contextlib
import gzip
import json
import os
import shutil

import numpy as np
import pytest

from diffusion_jax.errors import RunError, UserError

NO_FILES = ("missing", "folder", "pipe", "circle", "lfs")
CONTENTS = ("empty", "cut_start", "cut_middle", "cut_end", "flipped", "zeros", "text", "utf16", "gzipped")


@contextlib.contextmanager
def one_line_or_fine(*names):
    """Require that the block succeeds, or fails with one line that contains one of these names."""
    text = None
    try:
        yield
    except (UserError, RunError) as error:
        text = str(error)
    if text is not None:
        assert len(text.splitlines()) == 1, text
        assert any(str(name) in text for name in names), text


def one_line(call, *names):
    """Require that a call fails with one line that contains one of these names; returns the line."""
    with pytest.raises((UserError, RunError)) as error:
        call()
    with one_line_or_fine(*names):
        raise error.value
    return str(error.value)


def spoil(path, how):
    """Replace a file by a damaged version."""
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "circle":
        path.symlink_to(path.name)
    elif how != "missing":
        path.write_bytes(_spoilt(content, how))


def _spoilt(content, how):
    flipped = bytearray(content)
    for place in np.random.default_rng(0).integers(0, len(content), 1 + len(content) // 50):
        flipped[place] ^= 0x80
    return {
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "empty": b"",
        "cut_start": content[len(content) // 10 :],
        "cut_middle": content[: len(content) // 2],
        "cut_end": content[:-1],
        "flipped": bytes(flipped),
        "zeros": bytes(len(content)),
        "text": b"\xff no such file \xfe" * 9,
        "utf16": "a b".encode("utf-16"),
        "gzipped": gzip.compress(content),
    }[how]


def other_values(value):
    """Invalid values for a field of a JSON object, each of another type or out of range."""
    others = (None, True, -1, 1.5, 10**30, "x", "../../../etc/passwd", [], {}, [value], {"x": value}, float("nan"))
    return [other for other in others if other != value or isinstance(other, bool) != isinstance(value, bool)]


def with_field(path, name, value):
    """Replace a field of a JSON file, or remove it if the value is `...`."""
    found = json.loads(path.read_text())
    place, *rest = name
    inner = found
    while rest:
        inner, (place, *rest) = inner[place], rest
    if value is ...:
        del inner[place]
    else:
        inner[place] = value
    path.write_text(json.dumps(found))


def copied(source, target):
    """Copy a directory, so that the copy can be damaged."""
    shutil.copytree(source, target)
    return target
