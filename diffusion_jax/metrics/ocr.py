"""Readers of text in pictures: engines independent of our models, each applied to the line that a picture shows.

    picture -> background from its border -> box of everything else -> enlarged -> one line of text

A mark that does not belong to the text therefore counts as an error: it is in the box.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from diffusion_jax.data.glyphs import WordSuite
from diffusion_jax.errors import RunError, UserError

_INK = 40  # least difference from the background in some channel, of 255, for a pixel of the text
_BORDER = 2  # pixels on each side that show the background
_HEIGHT = 48  # least height in pixels of an engine's input
_PADDING = 0.2  # background around the line, as a share of its height
_PATIENCE = 60  # seconds for one picture


def line_of(image: UInt8[np.ndarray, "height width channels"]) -> UInt8[np.ndarray, "h w 3"] | None:
    """The part of a picture that is not background, with a margin, large enough to be read; None if there is none."""
    image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    edge = [image[:_BORDER], image[-_BORDER:], image[:, :_BORDER], image[:, -_BORDER:]]
    ground = np.median(np.concatenate([part.reshape(-1, 3) for part in edge]), axis=0)
    inked = np.abs(image.astype(np.float32) - ground).max(-1) > _INK
    if not inked.any():
        return None
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pad = max(2, round(_PADDING * len(part)))
    padded = np.broadcast_to(ground.astype(np.uint8), (part.shape[0] + 2 * pad, part.shape[1] + 2 * pad, 3)).copy()
    padded[pad:-pad, pad:-pad] = part
    scale = max(1, -(-_HEIGHT // len(padded)))
    size = (padded.shape[1] * scale, padded.shape[0] * scale)
    return np.asarray(PIL.Image.fromarray(padded).resize(size, PIL.Image.Resampling.BICUBIC))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextReader:
    """Reads pictures, one line each; the result depends only on the picture."""

    @property
    def described(self) -> str:
        """The engine's name and version, for the record."""
        raise NotImplementedError

    def read(self, images: Sequence[UInt8[np.ndarray, "height width channels"]]) -> list[str]:
        """The text of each picture; "" if nothing is read.

        Raises:
          UserError: the engine is not installed.
        """
        return [_remembered(self, np.ascontiguousarray(image).tobytes(), image.shape) for image in images]

    def read_line(self, line: UInt8[np.ndarray, "height width 3"]) -> str:
        """The text of an enlarged line."""
        raise NotImplementedError


@functools.lru_cache(maxsize=4096)
def _remembered(reader: TextReader, content: bytes, shape: tuple[int, ...]) -> str:
    """Read a line once and remember the result, since several metrics read the same pictures."""
    line = line_of(np.frombuffer(content, np.uint8).reshape(shape))
    return "" if line is None else reader.read_line(line)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RapidOcr(TextReader):
    """The recogniser of RapidOCR (PP-OCR's networks in ONNX; its models come with the package); no detector."""

    @property
    def described(self) -> str:
        return f"RapidOCR {importlib.metadata.version('rapidocr')}"

    def read_line(self, line: UInt8[np.ndarray, "height width 3"]) -> str:
        found = _rapid_ocr()(line, use_det=False, use_cls=False)
        return " ".join(found.txts or ())


RAPID_OCR = ("rapidocr", "onnxruntime")
"""The modules that `RapidOcr` imports."""


@functools.lru_cache(maxsize=1)
def _rapid_ocr():
    if not all(map(importlib.util.find_spec, RAPID_OCR)):
        raise UserError("words are read by RapidOCR, which is not installed: `pip install '.[judges]'`")
    from rapidocr import RapidOCR

    one_thread = {f"EngineConfig.onnxruntime.{scope}_op_num_threads": 1 for scope in ("intra", "inter")}
    return RapidOCR(params={"Global.log_level": "critical", **one_thread})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tesseract(TextReader):
    """The program tesseract with its English model, set to expect one line."""

    @staticmethod
    def is_there() -> bool:
        """Whether it is installed."""
        return shutil.which("tesseract") is not None

    @property
    def described(self) -> str:
        return _tesseract_version()

    def read_line(self, line: UInt8[np.ndarray, "height width 3"]) -> str:
        if not self.is_there():
            raise UserError("the second reader, tesseract, is not installed: `apt install tesseract-ocr`")
        png = io.BytesIO()
        PIL.Image.fromarray(line).save(png, "PNG")
        command = ["tesseract", "stdin", "stdout", "--psm", "7", "-l", "eng", "-c", "debug_file=/dev/null"]
        try:
            done = subprocess.run(
                command,
                input=png.getvalue(),
                capture_output=True,
                timeout=_PATIENCE,
                check=True,
                env={**os.environ, "OMP_THREAD_LIMIT": "1"},  # several threads are slower for such small pictures
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RunError(f"tesseract could not read a picture: {error}") from error
        return " ".join(done.stdout.decode(errors="replace").split())


@functools.lru_cache(maxsize=1)
def _tesseract_version() -> str:
    done = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    return next(iter(done.stdout.splitlines()), "tesseract")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByHeart(TextReader):
    """Replaces an engine in tests of the metrics: it knows the true pictures of some prompts and reads no others.

    Attributes:
      prompts: the prompts.
    """

    prompts: WordSuite

    @property
    def described(self) -> str:
        return "true pictures by heart"

    def read(self, images: Sequence[UInt8[np.ndarray, "height width channels"]]) -> list[str]:
        known = _by_heart(self.prompts)
        return [known.get(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest(), "") for image in images]


@functools.lru_cache(maxsize=2)
def _by_heart(prompts: WordSuite) -> dict[bytes, str]:
    pictures = prompts.pictures(range(len(prompts)))
    return {hashlib.sha256(p.tobytes()).digest(): prompt.word for p, prompt in zip(pictures, prompts, strict=True)}
