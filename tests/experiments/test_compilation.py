"""Compiled programs are cached for the next start, within bounds, and change no bit."""

import os
import subprocess
import sys
import zlib
from importlib import metadata

import pytest

from experiments.ground import compilation
from tests.processes import ROOT, child_environment

PROGRAM = """
from experiments.ground import compilation
compilation.keep_programs({wanted})
import jax, jax.numpy as jnp, numpy as np
hits = []
jax.monitoring.register_event_listener(lambda event, **more: hits.append(event) if "cache_hits" in event else None)
x = jax.jit(lambda key: jnp.tanh(jax.random.normal(key, (64, 64)) @ jnp.ones((64, 64)) / 64))(jax.random.key(3))
print(np.asarray(x).tobytes().hex(), len(hits))
"""


def run(cache, *, wanted=True, **env):
    """Run a process with this cache folder; returns (the bits of its result, programs read back, stderr)."""
    inherited = {k: v for k, v in child_environment().items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(wanted=wanted)],
        env={**inherited, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    bits, hits = done.stdout.split()
    return bits, int(hits), done.stderr


def test_a_second_start_reads_programs_back_with_the_same_bits(tmp_path):
    bits, hits, _ = run(tmp_path)
    kept = sorted(tmp_path.glob("diffusion_jax/compiled/*/*-cache"))
    assert hits == 0
    assert kept
    again, hits, _ = run(tmp_path)
    assert again == bits
    assert hits == len(kept)
    for path in kept:  # as left by a process that is killed while writing
        path.write_bytes(path.read_bytes()[:-20])
    once_more, hits, err = run(tmp_path)
    assert (once_more, hits) == (bits, 0)
    assert "Error reading" not in err
    assert sorted(tmp_path.glob("diffusion_jax/compiled/*/*-cache")) == kept


def test_nothing_is_kept_when_told_so(tmp_path):
    run(tmp_path / "off", wanted=False)
    run(
        tmp_path / "own",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"], "a folder that the user names is used, and no other"


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    _, hits, err = run(tmp_path / "file")
    assert hits == 0
    assert err.count("note: compiled programs are not kept") == 1


def program(folder, name, size, used):
    path = folder / "jaxlib" / f"{name}-cache"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(os.urandom(size)))
    os.utime(path, (used, used))
    return path


def test_the_longest_unused_go_beyond_the_bound(tmp_path):
    old, middle, new = (program(tmp_path, name, 1000, used) for name, used in (("c", 1e9), ("a", 1.1e9), ("b", 1.2e9)))
    compilation.tidy(tmp_path, 10_000)
    assert all(path.exists() for path in (old, middle, new))
    compilation.tidy(tmp_path, 2500)
    assert [path.exists() for path in (old, middle, new)] == [False, True, True]


@pytest.mark.parametrize("content", [b"", b"\x78", zlib.compress(os.urandom(500))[:-1]], ids=["empty", "begun", "cut"])
def test_a_program_that_was_written_in_part_is_removed(tmp_path, content):
    whole, part = program(tmp_path, "a", 500, 2e9), program(tmp_path, "b", 500, 2e9)
    part.write_bytes(content)
    compilation.tidy(tmp_path)
    assert (whole.exists(), part.exists()) == (True, False)


def test_the_flag_is_tried_in_a_process_of_its_own():
    """A compiler flag is tried in a separate process: it works on measured jaxlib versions, an unknown one fails."""
    if metadata.version("jaxlib") in compilation._MEASURED:
        assert compilation._tried(compilation._FOR_CONVOLUTIONS)
    assert not compilation._tried("--xla_no_such_flag=1")


def test_a_version_is_tried_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried = []
    monkeypatch.setattr(compilation, "_tried", lambda flag: tried.append(flag) or len(tried) == 1)
    assert [compilation.knows_convolutions(version) for version in ("0.12.0", "0.12.0", "0.13.0", "0.13.0")] == [
        *(True, True),
        *(False, False),
    ]
    assert len(tried) == 2
    (tmp_path / "diffusion_jax" / "xla_flags.json").write_text("damaged")
    assert not compilation.knows_convolutions("0.12.0"), "a damaged file is written again"
    assert len(tried) == 3
