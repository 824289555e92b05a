"""Detects the kind of a file of weights by its first bytes, since the endings of names are unreliable."""

import re
import struct
import zipfile
from pathlib import Path

from diffusion_jax.files import regular_file

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"ggml", "a GGML file (llama.cpp)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"\x1f\x8b", "packed by gzip: unpack it"),
    (b"BZh", "packed by bzip2: unpack it"),
    (b"\xfd7zXZ\x00", "packed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it"),
    (b"\x93NUMPY", "an .npy file, one array without a name"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program"),
)
_TABLE = struct.pack("<Q", 0xDB4775248B80FB57)  # the end of the index of a TensorFlow checkpoint
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*")


def recognise(path: Path | str) -> tuple[str | None, str | None]:
    """The reader for a file ("safetensors", "npz" or "torch"); otherwise what the file is, if that is known.

    Raises:
      UserError: there is no file, or it cannot be read.
    """
    path = regular_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(max(size - 8, 0))
        end = file.read(8)
    if not start:
        return None, "an empty file"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(path)
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
        return "safetensors", None
    if start[257:262] == b"ustar" or start[:100].rstrip(b"\0") == b"sys_info":
        return "torch", None
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch", None
    return None, _other(start, end, path)


def _archive(path: Path) -> tuple[str | None, str | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return None, "a zip archive that is cut off or damaged"
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "torch", None
    if any(name.endswith(".npy") for name in names):
        return "npz", None
    listed = ", ".join(names[:3]) or "nothing"
    return None, f"a zip archive, of neither PyTorch nor NumPy; it holds {listed}: unpack it"


def _other(start: bytes, end: bytes, path: Path) -> str | None:
    for magic, what in _STARTS:
        if start.startswith(magic):
            return what
    if end == _TABLE or re.search(r"\.data-\d{5}-of-\d{5}$", path.name):
        return "a part of a TensorFlow checkpoint"
    if (0x81 <= start[0] <= 0x8F and 0xA0 <= start[1:2][0] <= 0xBF) or start[:1] in (b"\xde", b"\xdf"):
        return "a msgpack file (Flax): save its parameters, flattened, with numpy.savez"
    if start[:1] == b"\x08" and start[1:2] < b"\x20" and (b"pytorch" in start or path.suffix == ".onnx"):
        return "an ONNX file"
    if path.suffix in (".onnx", ".pb"):
        return "an ONNX file" if path.suffix == ".onnx" else "a graph of TensorFlow"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (HTML) in the place of a file: download the file itself"
    if text.startswith(b"<?xml"):
        return "an XML text, such as a server's error, in the place of a file: download the file itself"
    if text.startswith((b"{", b"[")) and _TEXT.fullmatch(start):
        return f"a JSON text beginning with {_shown(start)}"
    if _TEXT.fullmatch(start) and not start.startswith((b"(", b"c", b"]", b"}")):  # old pickles are text
        return f"a text beginning with {_shown(start)}"
    return None


def _shown(start: bytes) -> str:
    return repr(" ".join(start[:40].decode("utf-8", "replace").split()))
