"""Checkpoints in a bucket, with an emulator of Google Cloud Storage. See also tests/faults/."""

import os
import subprocess
import sys

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training.checkpointing import Checkpointer
from tests.bucket import emulated
from tests.processes import ROOT, child_environment

WRITER = """
import jax.numpy as jnp
from diffusion_jax.training.checkpointing import Checkpointer
checkpointer = Checkpointer("gs://{bucket}/run", keep_last=2)
for step in {steps}:
    checkpointer.save(step, {{"x": jnp.arange(1000.0) + step}}, {{}}, {{}})
checkpointer.close()
"""
LISTED = """
from diffusion_jax.training.checkpointing import Checkpointer
found = Checkpointer("gs://bucket/run", read_only=True).steps()
assert found == {steps}, found
"""
READER = """
import subprocess, sys
import jax, jax.numpy as jnp
from diffusion_jax.training.checkpointing import Checkpointer
reader = Checkpointer("gs://bucket/run", read_only=True)
assert reader.steps() == [2, 3], reader.steps()
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
assert reader.steps() == [8, 9], reader.steps()
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
state, record = reader.restore(9, {"x": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=here)})
assert (state["x"] == jnp.arange(1000.0) + 9).all() and record["step"] == 9
"""


@pytest.fixture
def python(tmp_path):
    """Run a program that uses the emulator; returns the completed process."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with emulated(tmp_path) as (_, environment):
        yield lambda *arguments: subprocess.run(
            [sys.executable, "-c", *arguments],
            cwd=ROOT,
            env={**os.environ, **child_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )


def test_a_reader_sees_what_another_process_wrote_since(python):
    """Bucket listings are not cached, because another host or TensorStore may write."""
    for program in (
        [WRITER.format(bucket="bucket", steps=(1, 2, 3))],
        [READER, WRITER.format(bucket="bucket", steps=(8, 9))],
    ):
        done = python(*program)
        assert done.returncode == 0, done.stderr


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(python, tmp_path):
    """Readers ignore an unfinished checkpoint in a bucket, and a trainer removes it and continues."""
    assert python(WRITER.format(bucket="bucket", steps=(1, 2))).returncode == 0
    unfinished = "from etils import epath; epath.Path('gs://bucket/run/2/commit_success.txt').unlink()"
    assert python(unfinished).returncode == 0
    done = python(LISTED.format(steps=[1]))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".cloudstorage" / "bucket" / "run" / "2" / "state").exists()
    done = python(WRITER.format(bucket="bucket", steps=(2, 3)) + LISTED.format(steps=[2, 3]))
    assert done.returncode == 0, done.stderr


def test_a_bucket_that_can_not_be_written_is_refused_at_the_start(python):
    done = python(WRITER.format(bucket="another", steps=(1,)))
    assert "UserError: cannot write to gs://another/run: " in done.stderr
    assert "does the bucket exist" in done.stderr.splitlines()[-1]


def test_unknown_stores_are_refused():
    with pytest.raises(UserError, match="checkpoints cannot be kept in floppy://a/run: Protocol not known: floppy"):
        Checkpointer("floppy://a/run")
