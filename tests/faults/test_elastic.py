"""A run may continue repeatedly with other numbers of devices and processes."""

import numpy as np
import pytest

from tests.processes import complete, rows

RUN = (
    "--config.train.steps=32",
    "--config.log.every=4",
    "--config.log.validate_every=0",
    "--config.log.sample_every=0",
    "--config.checkpoint.every=8",
    "--config.checkpoint.keep_last=4",
    "--config.checkpoint.best_metric=loss",
    "--config.evaluation.metrics=()",
)
FSDP = ("--config.parallel.data=2", "--config.parallel.fsdp=-1")


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    """The losses of a run on one device."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    command.run("train", *command.train_arguments(workdir, *RUN))
    return losses(workdir)


def losses(workdir):
    found = rows(workdir)
    assert [row["step"] for row in found] == list(range(4, 33, 4))
    return [row["loss"] for row in found]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [(), FSDP], ids=["data", "fsdp"])
def test_8_then_4_then_2_processes_of_2_then_1(command, uninterrupted, tmp_path, parallel):
    """Eight steps on each layout, each continued from the checkpoint of the previous one, give the uninterrupted
    losses."""
    workdir = tmp_path / "run"
    arguments = command.train_arguments(workdir, *RUN, *parallel)
    on_one = command.train_arguments(workdir, *RUN)
    command.run("train", *arguments, JAX_NUM_CPU_DEVICES="8")
    out, _ = command.run("train", *arguments, "--resume_from=8", JAX_NUM_CPU_DEVICES="4")
    assert f"resuming {workdir} at step 8" in out
    (out, _), _ = command.finish_together(command.start_together(*arguments, "--resume_from=16", devices=2))
    assert f"resuming {workdir} at step 16" in out
    out, _ = command.run("train", *on_one, "--resume_from=24")
    assert f"resuming {workdir} at step 24" in out
    assert complete(workdir) == [8, 16, 24, 32]
    np.testing.assert_allclose(losses(workdir), uninterrupted, rtol=1e-5)


@pytest.mark.slow
def test_four_processes_are_one_run(command, uninterrupted, tmp_path):
    """Four real processes with one device each give the losses of one device."""
    arguments = command.train_arguments(tmp_path / "run", *RUN)
    command.finish_together(command.start_together(*arguments, count=4, devices=1), timeout=400)
    np.testing.assert_allclose(losses(tmp_path / "run"), uninterrupted, rtol=1e-5)
