"""Files: a failed read is one line, a write is complete or absent, and only our own directories are removed.

A file named by a user may be cut off, empty, huge, of another type or encoding, or no file at all. In all these cases
every reader here raises a `UserError` that names the file, and never allocates memory because a number in the file says
so."""

import contextlib
import errno
import fcntl
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from diffusion_jax.errors import RunError, UserError

JSON_LIMIT = 2**28  # bytes of a JSON file; configs, indices and tokenizers are much smaller
MARKER = ".diffusion_jax"  # marks every directory that we create and may remove
_PIECES, _PIECE = 256, 2**16  # `sampled_digest` reads this many pieces of a large file, each of so many bytes
_LFS = b"version https://git-lfs.github.com/spec/"

J = TypeVar("J", dict, list)


def expanded(path: str | os.PathLike) -> Path:
    """The path with `~` replaced by the home directory; `~name` stays as it is if there is no such user.

    Raises:
      UserError: the path contains a null byte.
    """
    if "\0" in os.fspath(path):
        raise UserError(f"{str(path)!r} is not a path: it has a null byte")
    return Path(os.path.expanduser(path))


def regular_file(path: str | os.PathLike) -> Path:
    """The path, if it leads to a file that can be read.

    Raises:
      UserError: there is nothing, or it is a folder, a pipe, a socket, a device, a circle of links, unreadable, or a
        pointer of Git LFS instead of the file itself.
    """
    path = expanded(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: half a character in the name
        raise UserError(f"cannot read {str(path)!r}: {_reason(error)}") from error
    if start == _LFS:
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`")
    return path


def read_bytes(path: str | os.PathLike, *, limit: int = JSON_LIMIT) -> bytes:
    """The content of a file.

    Raises:
      UserError: see `regular_file`, or more than `limit` bytes.
    """
    path = regular_file(path)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    if len(content) > limit:
        raise UserError(f"{path} has more than {limit:,} bytes, too many for a file of this kind")
    return content


def read_text(path: str | os.PathLike, *, limit: int = JSON_LIMIT) -> str:
    """The content of a file as UTF-8, without a byte order mark.

    Raises:
      UserError: see `read_bytes`; or it has another encoding.
    """
    content = read_bytes(path, limit=limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: str | os.PathLike, kind: type[J] = dict, *, limit: int = JSON_LIMIT, repeats: bool = True) -> J:
    """The value of a JSON file, an object or a list; see `parse_json`.

    Raises:
      UserError: see `read_text`; or it is damaged, or holds another kind of value.
    """
    return parse_json(read_text(path, limit=limit), path, kind, repeats=repeats)


def parse_json(text: str, origin: object, kind: type[J] = dict, *, repeats: bool = True) -> J:
    """The value of a JSON text; an error calls the text `origin`.

    Published files may name a field twice, and the last value counts; with `repeats` false that is an error.

    Raises:
      UserError: it is no JSON, or holds another kind of value.
    """
    try:
        value = json.loads(text, object_pairs_hook=None if repeats else _fields_once)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python reads
        raise UserError(f"{origin} is damaged or not JSON: {error}") from error
    if not isinstance(value, kind):
        raise UserError(f"{origin} holds a JSON {type(value).__name__}; it should be a {kind.__name__}")
    return value


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the field {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


@contextlib.contextmanager
def open_text(path: str | os.PathLike) -> Iterator[IO[str]]:
    """Open a text file to read line by line, through gzip if its name ends in .gz; only a newline ends a line.

    Raises:
      UserError: see `regular_file`; or, while the block reads, it proves damaged or to have another encoding.
    """
    path = regular_file(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or not a gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def read_json_rows(path: str | os.PathLike, *, limit: int = JSON_LIMIT) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line of a file with one JSON object per line; empty lines are skipped.

    Raises:
      UserError: see `open_text`; or a line has more than `limit` characters, is no JSON object, or has a field twice;
        the message names file and line.
    """
    with open_text(path) as file:
        lines = iter(lambda: file.readline(limit + 1), "")
        for number, line in enumerate(lines, start=1):
            if len(line) > limit:
                raise UserError(f"line {number} of {path} has more than {limit:,} characters")
            if line.strip():
                yield number, parse_json(line, f"line {number} of {path}", repeats=False)


def sampled_digest(path: str | os.PathLike) -> str:
    """A hash (SHA-256, hexadecimal) of a file's size and content, in bounded time.

    Up to 16 MiB the whole content counts. In a larger file 256 pieces of 64 KiB count, evenly spread from the first
    byte to the last.

    Raises:
      UserError: see `regular_file`.
    """
    path = regular_file(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            whole = size <= _PIECES * _PIECE
            for i in range(_PIECES):
                file.seek(i * _PIECE if whole else i * (size - _PIECE) // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    return digest.hexdigest()


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
      UserError: see `regular_file`; or it is damaged, holds more than arrays, or its header promises more bytes than
        the file has.
    """
    path = regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if not names:
                raise UserError(f"{path} holds no arrays")
            if len({info.filename for info in names}) < len(names):
                raise UserError(f"{path} is damaged: it has an array twice")
            return {info.filename.removesuffix(".npy"): _member(archive, info, path) for info in names}
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged or not an .npz file of arrays: {_reason(error)}") from error


def read_npy(path: str | os.PathLike, *, mmap: bool = False) -> np.ndarray:
    """The array of an .npy file, or a view of the file with `mmap`.

    Raises:
      UserError: see `regular_file`; or it is damaged, or holds more than one array of numbers.
    """
    path = regular_file(path)
    try:
        with open(path, "rb") as file:
            _check_header(file, path.stat().st_size)
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged or not an .npy file of numbers: {_reason(error)}") from error


_DAMAGED = (
    ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, SyntaxError, MemoryError, OverflowError,
    RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""The exceptions that numpy and zipfile raise for files of another format; RuntimeError for encrypted ones."""


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    """One array; its header is compared with the uncompressed size before anything is allocated."""
    if info.file_size > 1100 * max(info.compress_size, 1):  # deflate packs at most 1032 to 1
        raise UserError(f"{path} is damaged: {info.filename} claims {info.file_size:,} bytes")
    with archive.open(info) as file:
        _check_header(file, info.file_size)
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_header(file: IO[bytes], size: int) -> None:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the header")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds more than arrays: Python objects")
    count = 1
    for length in shape:
        count *= length  # Python's integers do not overflow
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"its header announces {dtype} {list(shape)}, more than its {size:,} bytes")


def content_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder.

    Raises:
      UserError: there is nothing, or it cannot be read.
    """
    path, digest = Path(path).expanduser(), hashlib.sha256()
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [regular_file(path)]
    try:
        for file in found:
            digest.update(str(file.relative_to(path)).encode() if file != path else b"")
            with open(file, "rb") as opened:
                while block := opened.read(2**20):
                    digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    return digest.hexdigest()


def replace_file(path: str | os.PathLike, content: bytes, *, make_folder: bool = True) -> None:
    """Write a file so that at any moment it has either the old content or the new, never a part.

    Its folder is created if it is missing, unless `make_folder` is false.

    Raises:
      RunError: the disk is full or not writable; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(f"could not write {path}: {error.strerror}; the former content is unchanged") from error


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs; the system releases it when the process ends, however it ends.

    Args:
      path: the lock file, which stays.
      busy: the error's words about the other process; `{holder}` in them becomes that process's number.
      wait: print `busy` and wait until the other process releases the lock, instead of raising an error.

    Raises:
      UserError: another process holds it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            said = busy.replace("{holder}", file.read().strip() or "another one")
            if not wait:
                raise UserError(said) from error
            print(f"waiting: {said}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def plain_name(what: str, name: str) -> str:
    """The name, if it can only mean an entry of the folder that it is put into.

    Raises:
      UserError: it is empty, too long, hidden, or has other characters than letters, digits, "_", "-", "." and "+".
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.+-]{0,127}", name) or name.endswith("."):
        shown = " ".join(repr(name).split())[:200]
        raise UserError(
            f"{what} {shown} is not a plain name: use letters, digits, '_', '-', '.' and '+', beginning with a "
            "letter, a digit or '_'"
        )
    return name


@contextlib.contextmanager
def whole_directory(target: str | os.PathLike) -> Iterator[Path]:
    """A private directory to fill, which becomes `target` when the block ends well and is removed when it does not.

    It carries our marker. If another process has made `target` in the meantime, that one stays. Directories for the
    same target that killed processes left behind are removed.

    Raises:
      UserError: `target` exists and is not ours.
    """
    target = Path(target)
    with private_directory(target.parent, f".{target.name}.", ".incomplete") as partial:
        yield partial
        partial.chmod(0o777 & ~_umask())
        if target.exists() and not (target / MARKER).is_file():
            raise UserError(f"{target} exists already, and this program did not make it: move it, or give another name")
        try:
            os.rename(partial, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


@contextlib.contextmanager
def private_directory(parent: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """A new directory that no other process touches, removed after the block unless it was renamed.

    It carries our marker and this process holds its lock. Directories with this prefix in `parent` that carry the
    marker and that no process holds, because it was killed, are removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent, f"{glob.escape(prefix)}*{glob.escape(suffix)}")
    made = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
    try:
        with open(made / f"{MARKER}.new", "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            os.rename(held.name, made / MARKER)  # held from the first moment on, so that no other process removes it
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_ours(directory: str | os.PathLike) -> None:
    """Remove a directory that this program made; do nothing if it does not exist.

    Raises:
      UserError: it does not carry our marker, so it may hold something of the user's.
    """
    directory = Path(directory)
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_symlink() or not (directory / MARKER).is_file():
        raise UserError(f"{directory} was not made by this program, so it is not removed: move it away yourself")
    shutil.rmtree(directory)


def _sweep(parent: Path, pattern: str) -> None:
    """Remove directories that carry our marker and whose process is dead."""
    for left in parent.glob(pattern):
        with contextlib.suppress(OSError), open(left / MARKER) as file:
            if not left.is_symlink():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
