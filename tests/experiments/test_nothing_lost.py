"""Nothing is lost, nothing is silent: refused starts, lost checkpoints, two processes at once, what is not finite."""

import json
import shutil

import numpy as np
import pytest

from diffusion_jax.errors import RunError, UserError
from experiments import evaluation, generation, workdir


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_refused_start_claims_nothing(command, tmp_path):
    place = tmp_path / "run"
    wrong = command.train_arguments(place, "--config.teacher.workdir=" + str(tmp_path / "nowhere"))
    _, error = command.run("train", *wrong, code=2)
    assert "nowhere" in error
    assert not (place / "config.json").exists()


@pytest.mark.parametrize("loss", ["emptied", "removed"])
def test_lost_checkpoints_are_noticed(command, run, loss):
    arguments = command.train_arguments(run)
    shutil.rmtree(run / "checkpoints")
    if loss == "emptied":
        (run / "checkpoints").mkdir()
    rows = (run / "metrics.jsonl").read_bytes()
    _, error = command.run("train", *arguments, code=2)
    assert "--restart" in error
    assert len(error.strip().splitlines()) == 1
    assert (run / "metrics.jsonl").read_bytes() == rows, "nothing was cut"
    out, _ = command.run("train", *arguments, "--restart")
    assert (run / "metrics.jsonl").read_bytes() == rows, "the same run again, bit for bit"
    assert "finished" not in out


def test_restart_is_for_lost_checkpoints_alone(command, run):
    _, error = command.run("train", *command.train_arguments(run), "--restart", code=2)
    assert "--restart is for a run whose checkpoints are lost" in error


def test_two_runs_do_not_share_checkpoints(command, run, tmp_path):
    other = command.train_arguments(
        tmp_path / "other", f"--config.checkpoint.directory={run}/checkpoints", "--config.seed=9"
    )
    _, error = command.run("train", *other, code=2)
    assert "another config" in error
    assert not (tmp_path / "other" / "config.json").exists()


def test_checkpoints_are_held_by_one_process(run, tmp_path):
    config = workdir.read_config(run)
    config.checkpoint.directory = str(tmp_path / "shared")
    with workdir.lock_checkpoints(config), pytest.raises(UserError, match="is writing checkpoints into"):  # noqa: SIM117
        with workdir.lock_checkpoints(config):
            pass


def test_two_evaluations_at_once(command, run):
    arguments = ("evaluate", f"--workdir={run}", "--metrics=nearest_neighbours", "--num_samples=100")
    alone, _ = command.run(*arguments)
    both = [command.start(*arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    for out, _ in outputs:
        assert _numbers(out) == _numbers(alone)
    assert not list(run.glob("evaluation-*"))


def _numbers(out):
    return json.loads(out[out.index("{") : out.rindex("}") + 1])


def test_samples_that_are_not_finite_are_counted():
    samples = np.zeros((4, 2, 2, 1), np.float32)
    generation.require_finite(samples, 100)
    samples[1, 0, 0, 0], samples[3, 1, 1, 0] = np.nan, np.inf
    with pytest.raises(RunError, match="2 of the 4 samples 100 to 103 are not finite, the first is 101"):
        generation.require_finite(samples, 100)


def test_metrics_that_are_not_finite_are_named(tmp_path):
    results = {"fid": {"fid": float("nan")}, "kid": {"kid": 1.0, "spread": float("inf")}}
    with pytest.raises(RunError, match=r"fid\.fid, kid\.spread"):
        evaluation._keep(tmp_path / "evaluation.json", results, {}, {"step": 3})
    assert not (tmp_path / "evaluation.json").exists()
