"""Promise 2 with real processes: a run of two processes with two devices each equals a run of one process."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.processes import final_state, rows

SHORT = (
    "--config.train.steps=16",
    "--config.log.every=4",
    "--config.log.validate_every=8",
    "--config.log.sample_every=0",
    "--config.checkpoint.every=8",
    "--config.sampling.batch_size=100",
    "--config.evaluation.metrics=()",
)
FSDP = ("--config.parallel.data=1", "--config.parallel.fsdp=4")
PMAP = ("--config.parallel.strategy=pmap",)


@pytest.fixture(scope="module")
def arguments(command):
    """The arguments of a short run."""
    return lambda workdir, *more: command.train_arguments(workdir, *SHORT, *more)


@pytest.fixture(scope="module")
def reference(command, arguments, tmp_path_factory):
    """The workdir of a run of one process on one device."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    command.run("train", *arguments(workdir))
    return workdir


def assert_same_but_for_rounding(workdir, expected):
    """Require equal rows and equal final parameters, optimizer and averages, up to rounding."""
    found, wanted = rows(workdir), rows(expected)
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == [4, 8, 12, 16]
    for row, other in zip(found, wanted, strict=True):
        assert row.keys() == other.keys()
        for name in ("loss", "validation_loss"):
            if name in row:
                np.testing.assert_allclose(row[name], other[name], rtol=1e-5, err_msg=f"{name} at {row['step']}")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        final_state(workdir, 16)[0],
        final_state(expected, 16)[0],
    )


def test_data_parallel(command, arguments, reference, tmp_path):
    workdir = tmp_path / "run"
    with_pictures = arguments(workdir, "--config.log.sample_every=8")
    (out, _), (other_out, other_err) = command.finish_together(command.start_together(*with_pictures))
    assert_same_but_for_rounding(workdir, reference)
    assert "report.html" in out
    # Gloo's threads report their connections to stdout, and their lines can interleave
    gloo = ("[Gloo]", "connected peer ranks is")
    said = [line for line in (other_out + other_err).splitlines() if not any(words in line for words in gloo)]
    assert not said, "only process 0 reports"
    pictures = {path.name for path in (workdir / "samples").iterdir()}
    assert pictures >= {"step_0000008.png", "step_0000016.png", "final.png"}
    assert json.loads((workdir / "environment.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_begun_by_one_process_then_two_with_pmap(command, arguments, reference, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    (out, _), _ = command.finish_together(command.start_together(*arguments(workdir, *PMAP), "--resume_from=8"))
    assert f"set aside {workdir}/checkpoints.set_aside/16" in out
    assert f"resuming {workdir} at step 8" in out
    assert_same_but_for_rounding(workdir, reference)


@pytest.mark.slow
def test_fsdp_stopped_by_a_signal_to_one_process(command, arguments, reference, tmp_path):
    """Both processes stop at the same step with exit code 0, and one process resumes from the shards of two."""
    workdir = tmp_path / "run"
    processes = command.start_together(*arguments(workdir, *FSDP))
    assert command.kill_when(processes[1], (workdir / "config.json").exists, number=signal.SIGTERM)
    (out, _), _ = command.finish_together(processes)
    assert "stopped by another host at step 4, which is saved; the same command resumes" in out
    assert (workdir / "checkpoints" / "4").is_dir()
    out, _ = command.run("train", *arguments(workdir))
    assert f"resuming {workdir} at step 4" in out
    assert_same_but_for_rounding(workdir, reference)


@pytest.mark.slow
def test_finished_run_says_so_in_two_processes_too(command, arguments, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    (out, _), (other_out, _) = command.finish_together(command.start_together(*arguments(tmp_path / "run")))
    assert "is finished: 16 of 16" in out
    assert "is finished" not in other_out


@pytest.mark.parametrize(
    ("victim", "moment"), [(0, "config.json"), pytest.param(1, "metrics.jsonl", marks=pytest.mark.slow)]
)
def test_the_other_process_does_not_outlive_one_that_was_killed(command, arguments, tmp_path, victim, moment):
    """The end of process 0 is noticed at once, because it holds the connections; that of another by its missing
    heartbeat."""
    workdir = tmp_path / "run"
    endless = ("--config.train.steps=100000", "--config.log.validate_every=0", "--config.checkpoint.best_metric=loss")
    processes = command.start_together(*arguments(workdir, *endless))
    assert command.kill_when(processes[victim], (workdir / moment).exists)
    began = time.monotonic()
    codes = (-signal.SIGKILL, -signal.SIGABRT)
    command.finish_together(processes, codes=codes if victim == 0 else codes[::-1], timeout=60)
    assert time.monotonic() - began < 60


def test_processes_with_different_configs_are_refused(command, arguments, tmp_path):
    processes = command.start_together(*arguments(tmp_path / "run"), others=("--config.seed=7",))
    for _, err in command.finish_together(processes, codes=(2, 2)):
        assert "error: the config differs between the processes of this run: process 1 differs from process 0" in err
        assert "Traceback" not in err
    assert not (tmp_path / "run" / "config.json").exists()


def test_incomplete_address_of_the_other_processes(command, arguments, tmp_path):
    line = command.fails("train", *arguments(tmp_path / "run"), "--num_processes=2")
    assert "give all of --coordinator_address, --num_processes and --process_id" in line
