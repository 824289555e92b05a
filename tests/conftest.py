"""Set up the tests: eight simulated CPU devices, a persistent compilation cache, float64 on request."""

import gc
import gzip
import os
import struct
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "diffusion_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Most tests run a program once on little data: skipping most XLA optimisations halves the time. Commands inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest
from absl import flags

from tests.processes import Command

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Drop compiled programs after each file: thousands of them slow down every garbage collection."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def optimised():
    """Compile the programs of a file as users do, for tests that inspect programs or compute for long."""
    chosen = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", chosen)


@pytest.fixture
def x64():
    """Run the test in float64, where the tested property is mathematical."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The directory in which the digits are prepared once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def idx_dir(tmp_path_factory):
    """A directory with four small idx files in the format of MNIST."""
    directory = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(0)
    for stem, count in [("train", 12), ("t10k", 128)]:
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(directory / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(directory / f"{stem}-labels-idx1-ubyte.gz", labels)
    return directory


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="session")
def command(data_dir):
    """Run the commands as child processes."""
    return Command(data_dir, forks=True)


@pytest.fixture(scope="session")
def finished(command, tmp_path_factory):
    """The workdir and the output of a finished, uninterrupted tiny run; tests read it and do not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    out, _ = command.run("train", *command.train_arguments(workdir))
    return workdir, out
