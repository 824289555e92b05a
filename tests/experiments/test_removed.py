"""If the workdir or checkpoints are removed during a command, it ends with one line and restores no part of them."""

import shutil
import signal

import numpy as np
import pytest

from diffusion_jax.errors import RunError, UserError
from experiments.building import restoring
from experiments.evaluating.drawing import Drawing
from experiments.ground import workdir
from experiments.ground.writers import create_writer
from tests.processes import complete, one_line

ENDLESS = ("--config.train.steps=100000", "--config.checkpoint.every=20")


def gone(path):
    """Remove a directory, even while another process writes into it."""
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)


def replaced(path):
    gone(path)
    path.write_text("a file in its place")


@pytest.fixture
def training(command, tmp_path):
    """An endless training that has saved a checkpoint, and its workdir."""
    place = tmp_path / "run"
    process = command.start("train", *command.train_arguments(place, *ENDLESS))
    assert command.kill_when(process, (place / "checkpoints" / "20").exists, number=0)
    yield process, place
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("what", "harm"),
    [
        (".", gone),
        ("checkpoints", replaced),
        pytest.param(".", replaced, marks=pytest.mark.slow),
        pytest.param("checkpoints", gone, marks=pytest.mark.slow),
        *(pytest.param(what, lambda path: path.rename(path.with_name("moved")), marks=pytest.mark.slow)
          for what in (".", "checkpoints")),
    ],
)  # fmt: skip
def test_training(training, what, harm):
    process, place = training
    harm(place / what)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1, err
    line = one_line(err)
    assert f"{place / what} was removed or replaced" in line or f"could not write {place}" in line
    left = [path.name for path in place.glob("checkpoints/*")]  # at most one checkpoint, completed a moment before
    assert all(name.isdigit() for name in left), "no half of it is brought back"
    assert what == "checkpoints" or not (place / "config.json").exists()


def test_training_goes_on_without_one_old_checkpoint(training):
    process, place = training
    newest = complete(place)[-1]
    shutil.rmtree(place / "checkpoints" / str(newest))
    while process.poll() is None and not [step for step in complete(place) if step > newest + 40]:
        pass
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err


def test_metrics_that_are_removed_are_missed(tmp_path):
    writer = create_writer(tmp_path / "run")
    writer.write_scalars(1, {"loss": 1.0})
    writer.flush()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    writer.write_scalars(2, {"loss": 1.0})
    with pytest.raises(RunError, match=r"metrics\.jsonl: it was removed while the run was under way"):
        writer.flush()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match="checkpoints written so far are safe"):
        writer.flush()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("what", ["run", "drawn"])
def test_evaluation(run, what):
    """Files removed between two batches of samples end the evaluation with one line."""

    class Batches:
        batch_size = 4
        experiment = restoring.restore_params(run)[0]

        def batches(self, params, labels, num_samples, seed, start):
            for first in range(start, num_samples, 4):
                if first:
                    shutil.rmtree(run if what == "run" else drawing.directory)
                yield np.zeros((4, 8, 8, 1), np.float32)

    drawing = Drawing(directory=run / "evaluation-0", num_samples=12, place=workdir.Place.of(run))
    match = "run was removed or replaced" if what == "run" else "evaluation-0 was removed while samples were drawn"
    with pytest.raises(RunError, match=match):
        drawing.draw(Batches(), {}, None, 0)
    assert run.exists() == (what == "drawn")


@pytest.mark.parametrize("command_name", ["sample", "evaluate"])
def test_readers_of_what_is_gone(command, finished, run, command_name):
    shutil.rmtree(run / "checkpoints")
    line = command.fails(command_name, f"--workdir={run}")
    assert f"had checkpoint 60 in {finished[0]}/checkpoints, and there is no checkpoint in {run}/checkpoints" in line
    assert not (run / "checkpoints").exists()
    shutil.rmtree(run)
    assert "no config.json in" in command.fails(command_name, f"--workdir={run}")
    assert not run.exists()


def test_a_reader_says_what_was_removed_while_it_read(run, monkeypatch):
    restore = restoring.training.Checkpointer.restore

    def removed_first(self, step, abstract_state):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        return restore(self, step, abstract_state)

    monkeypatch.setattr(restoring.training.Checkpointer, "restore", removed_first)
    with pytest.raises(UserError, match=r"checkpoint 40 in .* was removed while it was read"):
        restoring.restore_params(run, step=40)
    assert not (run / "checkpoints").exists()


def damaged(checkpoint):
    """Truncate the index of the arrays."""
    for file in checkpoint.rglob("manifest.ocdbt"):
        file.write_bytes(file.read_bytes()[:20])


@pytest.mark.parametrize("command_name", ["sample", "evaluate"])
def test_readers_name_the_way_round_a_damaged_checkpoint(command, run, command_name):
    damaged(run / "checkpoints" / "60")
    line = command.fails(command_name, f"--workdir={run}")
    assert "checkpoint 60 in" in line
    assert "; checkpoint 40 is whole: --checkpoint=40 takes it" in line


def test_the_way_round_is_one(command, run):
    damaged(run / "checkpoints" / "60")
    out, _ = command.run("sample", f"--workdir={run}", "--checkpoint=40", "--num_samples=2")
    assert "2 samples of step 40" in out
    damaged(run / "checkpoints" / "40")
    for step in (None, 60, 40):
        with pytest.raises(UserError, match="and there is no whole one besides"):
            restoring.restore_params(run, step=step, flag="--checkpoint")


def test_a_guide_names_the_way_round_too(command, run, finished, tmp_path):
    damaged(run / "checkpoints" / "60")
    line = command.fails(
        "sample", f"--workdir={finished[0]}", f"--guide={run}", "--guidance_scale=2", f"--out={tmp_path}/x.npz"
    )
    assert f"checkpoint 40 is whole, and is taken once {run}/checkpoints/60 is moved away" in line
