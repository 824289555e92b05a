"""A finished run is trained longer with a stated learning rate, and equals a training planned with that length."""

import json
import shutil

import jax
import numpy as np
import pytest

from diffusion_jax.training import learning_rate_schedule
from tests.processes import assert_same_run, final_state, rows

LONGER = "--config.train.steps=80"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run of 60 steps."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def extended(command, finished, tmp_path_factory):
    """A run of 60 steps that was extended to 80 without interruption, and its output."""
    workdir = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(finished[0], workdir)
    out, _ = command.run("train", *command.train_arguments(workdir, LONGER))
    return workdir, out


def test_it_goes_on_with_the_rate_of_the_new_config(extended, finished):
    workdir, out = extended
    rate = {
        steps: learning_rate_schedule(2e-3, decay="cosine", warmup_steps=100, total_steps=steps) for steps in (60, 80)
    }
    said = next(line for line in out.splitlines() if "is trained longer" in line)
    assert "60 -> 80 steps" in said
    assert f"was {float(rate[60](59)):.3g} at the last step and is {float(rate[80](60)):.3g} at the next" in said
    found = rows(workdir)
    assert found[:6] == rows(finished[0]), "what was logged stays"
    assert [row["step"] for row in found] == [10, 20, 30, 40, 50, 60, 70, 80]
    expected = np.mean([float(rate[80](n)) for n in range(60, 70)])
    assert found[6]["learning_rate"] == pytest.approx(expected, rel=1e-6)


def test_what_follows_from_the_end_is_made_again_and_the_former_end_is_on_record(extended):
    workdir, _ = extended
    assert json.loads((workdir / "evaluation.json").read_text())["settings"]["step"] == 80
    assert json.loads((workdir / "finished.json").read_text()) == {"step": 80}
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 80
    assert json.loads((workdir / "saved.json").read_text())["extended"] == [60]
    assert final_state(workdir, 80)[1]["extended"] == [60]
    assert (workdir / "report.html").stat().st_mtime >= (workdir / "evaluation.json").stat().st_mtime


def test_without_a_decay_it_is_the_run_that_was_meant_to_be_so_long(command, tmp_path):
    constant = (
        "--config.optimizer.decay=constant",
        "--config.optimizer.warmup_steps=10",
        "--config.log.sample_every=0",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command.run("train", *command.train_arguments(whole, LONGER, *constant))
    command.run("train", *command.train_arguments(parts, *constant))
    out, _ = command.run("train", *command.train_arguments(parts, LONGER, *constant))
    assert "was 0.002 at the last step and is 0.002 at the next" in out
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, final_state(parts, 80)[0], final_state(whole, 80)[0])


def test_killed_at_any_moment_it_is_the_same_extension(command, extended, run):
    arguments = command.train_arguments(run, LONGER)
    checkpoints = run / "checkpoints"
    moments = [
        lambda: json.loads((run / "config.json").read_text())["train"]["steps"] == 80,
        lambda: bool(list(checkpoints.glob("80.orbax-checkpoint-tmp*"))),
        lambda: (checkpoints / "80").exists(),
    ]
    killed = 0
    for moment in moments:
        process = command.start("train", *arguments)
        killed += command.kill_when(process, moment)
        process.communicate()
    assert killed >= 2
    command.run("train", *arguments)
    assert_same_run(run, extended[0], step=80)


def test_what_is_refused_changes_nothing(command, finished, run):
    def files():
        return {
            path: path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.name.endswith(".lock")
        }

    before = files()
    line = command.fails("train", *command.train_arguments(run, "--config.train.steps=40"))
    assert "train.steps=40 is fewer: a run may be trained longer, not shorter" in line
    line = command.fails("train", *command.train_arguments(run, LONGER, "--config.optimizer.learning_rate=0.5"))
    assert "optimizer.learning_rate: 0.002 -> 0.5" in line
    shutil.rmtree(run / "checkpoints" / "60")
    before = {path: content for path, content in before.items() if path.exists()}
    line = command.fails("train", *command.train_arguments(run, LONGER))
    assert "checkpoint 40" in line
    assert "is not the last one of its 60 steps" in line
    assert "--config.train.steps=60 first" in line
    assert files() == before


def test_checkpoints_of_another_workdir_are_not_trained_longer(command, run, tmp_path):
    other = f"--config.checkpoint.directory={run}/checkpoints"
    line = command.fails("train", *command.train_arguments(tmp_path / "other", LONGER, other))
    assert "train.steps: 60 -> 80" in line


@pytest.mark.slow  # five trainings
def test_going_back_behind_the_former_end_takes_the_steps_of_then(command, extended, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(extended[0], run)
    shutil.copytree(finished[0] / "checkpoints" / "40", run / "checkpoints" / "40", dirs_exist_ok=True)
    line = command.fails("train", *command.train_arguments(run, LONGER, "--resume_from=40"))
    assert "--config.train.steps=60 first" in line
    out, _ = command.run("train", *command.train_arguments(run, "--resume_from=40"))
    assert "set aside" in out
    assert_same_run(run, finished[0], branch=40)
    out, _ = command.run("train", *command.train_arguments(run, LONGER))
    assert_same_run(run, extended[0], step=80, branch=40)
