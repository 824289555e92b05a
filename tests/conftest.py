"""Test set-up: eight simulated CPU devices, a persistent compilation cache, float64 on request."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "diffusion_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags


@pytest.fixture
def x64():
    """Run the test in float64, where the contract is mathematical."""
    with jax.enable_x64(True):
        yield
