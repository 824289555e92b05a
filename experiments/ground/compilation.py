"""Compilation settings: programs are kept for the next start, and XLA is told what makes them fast on CPUs.

Compiled programs are kept in the user's cache folder, by version of jaxlib and kind of processor, up to a number of
bytes. `--nocompilation_cache` keeps none. If JAX_COMPILATION_CACHE_DIR is set, it is used, and nothing here changes
that folder. A program that is read back is the same machine code, so results have the same bits.

Only the standard library is imported here, because commands call this before they import JAX.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path

MEANING = "keep compiled programs in the user's cache folder, so that the next start is fast"
LARGEST = 2 * 2**30  # largest total size in bytes
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"
_FOR_CONVOLUTIONS = f"{CONVOLUTIONS}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
_MEASURED = ("0.10.2",)  # versions of jaxlib whose speed was measured with the flag
_CHECKED = ".checked"
_PROBE = """
import jax, jax.numpy as jnp
conv = jax.jit(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME"))
assert float(conv(jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 3, 3)))[0, 0, 1, 1]) == 9
"""


def cache_folder() -> Path:
    """This user's folder for data that can be recomputed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_jax"


def keep_programs(wanted: bool = True) -> None:
    """Tell JAX, which is not imported yet, and all child processes where to keep compiled programs.

    If the folder cannot be written, one line on stderr says so and nothing is kept.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if not wanted or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "compiled"
        own = folder / f"jaxlib-{metadata.version('jaxlib')}-{_processor()}"
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        tidy(folder)
    except (OSError, RuntimeError) as error:  # also for a user without a home
        print(f"note: compiled programs are not kept ({error}); --nocompilation_cache asks for that", file=sys.stderr)
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(own)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _processor() -> str:
    """A hash of the processor's features: machine code made for one kind may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        found = platform.machine() + platform.processor()
    return hashlib.sha256(found.encode()).hexdigest()[:12]


def tidy(folder: Path, largest: int = LARGEST) -> None:
    """Remove programs that a killed process wrote incompletely, and those unused for longest beyond `largest` bytes.

    JAX writes a program in place, and keeps a damaged one for ever. Only files written since the last check are read.
    """
    stamp = folder / _CHECKED
    checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
    stamp.touch()
    found = []
    for path in folder.glob("*/*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies too
            facts = path.stat()
            whole = facts.st_mtime_ns < checked or _whole(path.read_bytes())
            if not whole:
                path.unlink()
            else:
                os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # a check does not count as use
                found.append((max(facts.st_atime_ns, facts.st_mtime_ns), facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= largest:
            break
        path.unlink(missing_ok=True)
        total -= size


def _whole(content: bytes) -> bool:
    """Whether a compressed program is complete; a program compressed otherwise than by zlib is assumed to be."""
    if content[:1] != b"\x78":
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


def quicken_cpu() -> None:
    """Let XLA run convolutions on all cores, if this jaxlib can: on CPU, before JAX starts.

    Measured with `benchmarks.models`: the train step of DDPM's U-Net becomes 1.5 times as fast. The flag in XLA_FLAGS
    takes precedence.
    """
    accelerated = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin"))
    flags_there = os.environ.get("XLA_FLAGS", "")
    only_cpu = os.environ.get("JAX_PLATFORMS", "") in ("cpu", "") and not accelerated
    if only_cpu and CONVOLUTIONS not in flags_there and knows_convolutions(metadata.version("jaxlib")):
        os.environ["XLA_FLAGS"] = f"{flags_there} {_FOR_CONVOLUTIONS}".strip()


def knows_convolutions(version: str) -> bool:
    """Whether this version of jaxlib knows the flag; a version that does not would end the process.

    Versions that were not measured are tried once, in a child process, and the answer is kept in the cache folder; if
    that cannot be written, the answer is no.
    """
    if version in _MEASURED:
        return True
    kept = cache_folder() / "xla_flags.json"
    try:
        known = json.loads(kept.read_text())
        if isinstance(known, dict) and isinstance(known.get(version), bool):
            return known[version]
    except (OSError, ValueError):
        known = {}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        answer = _tried(_FOR_CONVOLUTIONS)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({**known, version: answer} if isinstance(known, dict) else {version: answer}))
        part.replace(kept)
    except (OSError, RuntimeError):
        return False
    return answer


def _tried(flag: str) -> bool:
    """Whether a convolution runs, and is correct, in a process with this XLA flag."""
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
