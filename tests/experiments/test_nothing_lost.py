"""Data is never lost silently: refused starts, lost checkpoints, two processes at once, non-finite numbers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from configs.digits_unet import get_config
from diffusion_jax.data import DatasetInfo
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.specs import DataSpec
from experiments.evaluating import evaluation, generation
from experiments.ground import workdir


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


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"{", b"[" * 100_000])
def test_a_damaged_record_of_whose_the_checkpoints_are(tmp_path, content):
    (tmp_path / workdir.OWNER).write_bytes(content)
    with pytest.raises(UserError, match=r"owner\.json"):
        workdir.own_checkpoints(tmp_path, get_config(), tmp_path)


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


def test_where_files_lie_is_no_part_of_a_run_and_what_they_hold_is(tmp_path):
    def config(place, **fields):
        whole = get_config()
        whole.data.update(dataset=f"folder:{place}", features=f"{place}/f.npy", data_dir=str(place))
        whole.evaluation.update(inception=f"{place}/i.pkl", **fields)
        return whole

    info = DatasetInfo(
        name="folder", split="train", num_examples=1, spec=DataSpec(kind="pixels", shape=(8, 8, 3)), fingerprint="a"
    )
    for place in "ab":
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "f.npy", np.arange(4))
    run = tmp_path / "run"
    run.mkdir()
    workdir.claim(run, config(tmp_path / "a"), info)
    workdir.claim(run, config(tmp_path / "b"), info)
    assert workdir.read_config(run).data.dataset == f"folder:{tmp_path}/b", "other commands find it"
    workdir.claim(run, config(tmp_path / "b"), dataclasses.replace(info, fingerprint=""))
    workdir.claim(run, config(tmp_path / "b"), info)
    with pytest.raises(UserError, match="the data is not that of the run"):
        workdir.claim(run, config(tmp_path / "b"), dataclasses.replace(info, fingerprint="b"))
    np.save(tmp_path / "b" / "f.npy", np.arange(5))
    with pytest.raises(UserError, match=r"data\.features is not the file of the run"):
        workdir.claim(run, config(tmp_path / "b"), info)


def test_a_finished_run_is_evaluated_in_another_way(command, run):
    arguments = command.train_arguments(run, "--config.evaluation.num_samples=30", "--config.sampling.steps=2")
    out, _ = command.run("train", *arguments)
    assert "evaluation.num_samples: 20 -> 30" in out
    assert json.loads((run / "evaluation.json").read_text())["settings"]["num_samples"] == 30
    assert (run / "finished.json").exists()
    out, _ = command.run("train", *arguments)
    assert "changed" not in out
