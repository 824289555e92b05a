"""Promise 1: a run killed anywhere and resumed equals the uninterrupted run bit for bit, with real processes and
signals."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from diffusion_jax import training
from experiments.building.restoring import restore_params
from tests.processes import assert_same_run, final_state, rows


@pytest.mark.slow  # tests/faults also kills runs at random moments
def test_killed_at_many_moments_equals_uninterrupted(command, finished, tmp_path):
    """The kills come before the first checkpoint, between checkpoints, during a save and just after one."""
    workdir = tmp_path / "run"
    arguments = command.train_arguments(workdir)
    checkpoints = workdir / "checkpoints"
    moments = [
        lambda: len(rows(workdir)) >= 1,  # before any checkpoint
        lambda: bool(list(checkpoints.glob("20.orbax-checkpoint-tmp*"))),  # during the first save
        lambda: len(rows(workdir)) >= 3,  # between two checkpoints, so that a row must be written again
        lambda: bool(list(checkpoints.glob("40.orbax-checkpoint-tmp*"))),
        lambda: (checkpoints / "40").exists(),
        lambda: bool(list(checkpoints.glob("60.orbax-checkpoint-tmp*"))),
    ]
    killed = 0
    for moment in moments:
        process = command.start("train", *arguments)
        killed += command.kill_when(process, moment)
        process.communicate()
    assert killed >= 4
    out, _ = command.run("train", *arguments)
    assert_same_run(workdir, finished[0])
    assert "report.html" in out
    assert (workdir / "report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_says_how_to_resume_and_exits_0(command, finished, tmp_path, number):
    """The run saves the step at which the signal arrives, and the same command resumes from it."""
    workdir = tmp_path / "run"
    arguments = command.train_arguments(workdir)
    process = command.start("train", *arguments)
    # a row reaches the disk with the next row or with a checkpoint; the first checkpoint is at step 20
    assert command.kill_when(process, lambda: len(rows(workdir)) >= 2, number=number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"stopped by {number.name} at step" in out
    assert "the same command resumes" in out
    step = int(out.split("at step ")[1].split(",")[0])
    assert (workdir / "checkpoints" / str(step)).is_dir()
    out, _ = command.run("train", *arguments)
    assert f"resuming {workdir} at step {step}" in out
    state, _ = final_state(workdir)
    expected, _ = final_state(finished[0])
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert (workdir / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_signal_long_after_a_validation(command, tmp_path):
    """A run that is stopped long after a validation saves its step and writes the report."""
    workdir = tmp_path / "run"
    process = command.start("train", *command.train_arguments(workdir, "--config.train.steps=100000"))
    assert command.kill_when(process, lambda: (workdir / "checkpoints" / "40").exists(), number=signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert int(out.split("at step ")[1].split(",")[0]) >= 40
    assert "Stopped at step" in (workdir / "report.html").read_text()


def test_signal_before_the_first_step(command, tmp_path):
    workdir = tmp_path / "run"
    process = command.start("train", *command.train_arguments(workdir))
    assert command.kill_when(process, lambda: (workdir / "config.json").exists(), number=signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "before a step was done" in out or "at step" in out


def test_one_trainer_in_a_workdir_and_readers_do_no_harm(command, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.train_arguments(workdir, "--config.train.steps=100000", "--config.checkpoint.every=5")
    process = command.start("train", *arguments)
    try:
        assert_soon = command.kill_when(process, lambda: (workdir / "checkpoints" / "20").exists(), number=0)
        assert assert_soon
        assert f"process {process.pid} is training in {workdir}" in command.fails("train", *arguments)
        for _ in range(3):
            command.run("sample", f"--workdir={workdir}", "--num_samples=2", f"--out={tmp_path}/x.npz")
        assert process.poll() is None, process.communicate()[1]
        assert "<b>Training at step" in (workdir / "report.html").read_text(), "from the first pictures on"
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_checkpoint_deleted_while_it_is_read_is_not_a_damaged_one(finished, tmp_path, monkeypatch):
    """A reader whose checkpoint is deleted by the trainer falls back to an existing one."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    restore = training.Checkpointer.restore

    def delete_first(self, step, abstract_state):
        if step == newest:
            shutil.rmtree(workdir / "checkpoints" / str(step))
        return restore(self, step, abstract_state)

    monkeypatch.setattr(training.Checkpointer, "restore", delete_first)
    _, _, source = restore_params(workdir)
    assert source["step"] < newest


def test_checkpoints_of_another_run_are_refused(command, tmp_path):
    """A new workdir with another config does not use the checkpoints of another run in a shared directory."""
    bucket = f"--config.checkpoint.directory={tmp_path}/bucket"
    command.run("train", *command.train_arguments(tmp_path / "a", bucket, "--config.train.steps=20"))
    line = command.fails("train", *command.train_arguments(tmp_path / "b", bucket, "--config.seed=7"))
    assert "another config" in line
    assert "seed: 0 -> 7" in line
    assert "train.steps: 20 -> 60" in line


def test_sampling_needs_neither_the_data_nor_the_mesh_of_the_training(command, finished, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(finished[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["parallel"] |= {"data": 4, "fsdp": 2}
    config["data"] |= {"dataset": "cifar10", "data_dir": str(tmp_path / "nowhere")}
    (workdir / "config.json").write_text(json.dumps(config))
    command.run("sample", f"--workdir={workdir}", "--num_samples=2", f"--out={tmp_path}/x.npz")


def test_finished_run_says_so_and_changes_nothing(command, finished):
    workdir, _ = finished

    def files():
        return {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}

    before = files()
    out, _ = command.run("train", *command.train_arguments(workdir))
    assert f"{workdir} is finished: 60 of 60 steps are done" in out
    assert files() == before


def test_another_config_is_refused_with_the_differing_fields(command, finished):
    workdir, _ = finished
    line = command.fails(
        "train", *command.train_arguments(workdir, "--config.optimizer.learning_rate=0.5", "--config.seed=3")
    )
    assert "optimizer.learning_rate: 0.002 -> 0.5" in line
    assert "seed: 0 -> 3" in line
    assert "train.steps" not in line


def test_corrupt_newest_checkpoint_stops_until_told_to_use_the_one_before(command, finished, tmp_path):
    workdir = tmp_path / "run"
    arguments = command.train_arguments(workdir)
    command.run("train", *arguments)
    newest = workdir / "checkpoints" / "60"
    for file in newest.rglob("manifest.ocdbt"):
        file.write_bytes(file.read_bytes()[:20])
    line = command.fails("train", *arguments)
    assert "checkpoint 60" in line
    assert "corrupt" in line
    assert "--resume_from=40" in line
    line = command.fails("train", *arguments, "--resume_from=33")
    assert "no checkpoint 33" in line
    (workdir / "evaluation.json").unlink()
    out, _ = command.run("train", *arguments, "--resume_from=40")
    assert (workdir / "evaluation.json").exists(), "what follows from the end is made anew"
    assert "resuming" in out
    assert "set aside" in out
    assert_same_run(workdir, finished[0], branch=40)
    out, _ = command.run("train", *arguments, "--resume_from=40")
    assert "is finished" in out, "the flag is obeyed once"


def test_logged_rows_are_complete_and_in_order(finished):
    workdir, out = finished
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [10, 20, 30, 40, 50, 60]
    assert all(np.isfinite(row["loss"]) for row in found)
    assert [row["step"] for row in found if "validation_loss" in row] == [20, 40, 60]
    assert not any("second" in name for row in found for name in row), "no wall clock in results"
    for name in (
        "config.json",
        "environment.json",
        "parameters.txt",
        "evaluation.json",
        "report.html",
        "neighbours.png",
    ):
        assert (workdir / name).stat().st_size > 0, name
    assert {path.name for path in (workdir / "samples").iterdir()} == {
        "step_0000030.png",
        "step_0000060.png",
        "final.png",
        "denoising.png",
    }
    assert f"report:  {workdir}/report.html" in out
    end = out[out.index("Training loss") :]
    assert "Class accuracy" in end
    assert f"python -m experiments.sample --workdir={workdir}" in end, "what to do next"
    assert len(end.splitlines()) < 20
