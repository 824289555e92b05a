"""A first stage from training to samples of its latents through the commands, with a kill and with refused input."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from diffusion_jax import load_model, systems
from diffusion_jax.data import open_dataset
from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.specs import DATA
from experiments.building.kinds import open_experiment
from experiments.building.restoring import restore_params
from experiments.evaluating import judging
from experiments.ground.config_files import load_config
from tests.processes import TINY, rows

SMALL = (
    "--config.codec.channels=(8,8)",
    "--config.train.steps=40",
    "--config.train.batch_size=32",
    "--config.log.every=10",
    "--config.log.validate_every=20",
    "--config.log.validation_examples=64",
    "--config.log.sample_every=20",
    "--config.checkpoint.every=20",
    "--config.evaluation.metrics=('psnr',)",
    "--config.evaluation.num_samples=50",
)


def train_arguments(command, workdir, *more):
    config = "--config=configs/digits_autoencoder.py"
    return (config, f"--workdir={workdir}", f"--config.data.data_dir={command.data_dir}", *SMALL, *more)


def prepare_arguments(command, stage, out):
    return (f"--first_stage={stage}", "--dataset=digits", f"--out={out}", f"--data_dir={command.data_dir}")


@pytest.fixture(scope="module")
def stage(command, tmp_path_factory):
    """The workdir of a first stage that was killed at its first checkpoint and then trained to its end."""
    workdir = tmp_path_factory.mktemp("first_stage") / "ae"
    process = command.start("train", *train_arguments(command, workdir))
    assert command.kill_when(process, lambda: (workdir / "checkpoints" / "20").exists())
    process.communicate()
    assert not (workdir / systems.first_stage.ABOUT).exists()
    out, _ = command.run("train", *train_arguments(command, workdir))
    assert f"resuming {workdir} at step 20" in out
    return workdir


@pytest.fixture(scope="module")
def latents(command, stage, tmp_path_factory):
    """The digits encoded by that first stage."""
    folder = tmp_path_factory.mktemp("latents") / "z"
    command.run("prepare_latents", *prepare_arguments(command, stage, folder), "--shard_size=400")
    return folder


def config_of(command, **fields):
    config = load_config("configs/digits_unet.py")
    config.data.data_dir = str(command.data_dir)
    for name, value in fields.items():
        *groups, field = name.split("__")
        functools.reduce(lambda group, inner: group[inner], groups, config)[field] = value
    return config


def latent_config(command, stage, latents, **more):
    given = {"data__dataset": f"latents:{latents}", "data__image_size": 4, "first_stage__path": str(stage)}
    return config_of(command, **{**given, **more})


def test_a_run_of_a_first_stage_leaves_what_a_run_leaves(stage):
    assert [row["step"] for row in rows(stage)] == [10, 20, 30, 40]
    assert {"loss", "l1", "mse", "kl", "distortion"} <= set(rows(stage)[0])
    assert [row["step"] for row in rows(stage) if "validation_loss" in row] == [20, 40]
    assert {path.name for path in (stage / "samples").iterdir()} == {
        "step_0000020.png",
        "step_0000040.png",
        "final.png",
    }
    evaluation = json.loads((stage / "evaluation.json").read_text())
    assert 5 < evaluation["psnr"]["psnr"] < 59
    assert {f"std_{i}" for i in range(4)} <= set(evaluation["latents"])
    assert "PSNR" in (stage / "report.html").read_text()


@pytest.mark.slow  # tests/faults and test_resume.py kill runs of denoisers with the same loop
def test_the_killed_run_is_the_uninterrupted_one(command, stage, tmp_path):
    workdir = tmp_path / "ae"
    command.run("train", *train_arguments(command, workdir))
    for name in (systems.first_stage.WEIGHTS, systems.first_stage.ABOUT, "metrics.jsonl", "evaluation.json"):
        assert (workdir / name).read_bytes() == (stage / name).read_bytes(), name


def test_latents_have_unit_variance_by_constants_that_were_measured(stage, latents):
    """The noisy latents of the training data have mean 0 and variance 1."""
    opened = open_dataset(f"latents:{latents}")
    kept = np.stack([opened.source[i]["image"] for i in range(len(opened.source))]).astype(np.float64)
    mean, std = np.split(kept, 2, axis=-1)
    np.testing.assert_allclose(mean.mean((0, 1, 2)), 0, atol=2e-3)
    np.testing.assert_allclose((mean**2 + std**2).mean((0, 1, 2)), 1, rtol=2e-3)
    assert opened.source[0]["label"] in range(10)
    assert opened.info.first_stage == systems.load_first_stage(stage).fingerprint


def test_killed_and_run_again_the_bytes_of_the_latents_are_the_same(command, stage, latents, tmp_path):
    again = tmp_path / "z"
    arguments = (*prepare_arguments(command, stage, again), "--shard_size=400")
    process = command.start("prepare_latents", *arguments)
    assert command.kill_when(process, lambda: (again / "train" / "00000.npy").exists())
    process.communicate()
    assert not (again / "info.json").exists()
    command.run("prepare_latents", *arguments)
    files = sorted(path.relative_to(latents) for path in latents.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in files:
        assert (again / name).read_bytes() == (latents / name).read_bytes(), name
    out, _ = command.run("prepare_latents", *arguments)
    assert "are already in" in out


def test_a_run_on_latents_draws_pictures(command, stage, latents, tmp_path):
    """A run on latents writes samples, metrics and a report like a run on pixels, and no checkpoint has the first
    stage."""
    workdir = tmp_path / "run"
    chosen = (
        f"--config.data.dataset=latents:{latents}",
        "--config.data.image_size=4",
        f"--config.first_stage.path={stage}",
        "--config.train.steps=20",
        "--config.log.sample_every=20",
    )
    arguments = (*command.train_arguments(workdir), *chosen)
    assert TINY[0] in arguments
    command.run("train", *arguments)
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert 0 <= evaluation["class_accuracy"]["accuracy"] <= 1
    assert {"final.png", "denoising.png", "step_0000020.png"} <= {path.name for path in (workdir / "samples").iterdir()}
    command.run("sample", f"--workdir={workdir}", "--num_samples=4", f"--out={tmp_path}/x.npz")
    images = np.load(tmp_path / "x.npz")["images"]
    assert (images.shape, images.dtype) == ((4, 8, 8, 1), np.uint8)

    experiment, params, _ = restore_params(workdir)
    frozen = systems.load_first_stage(stage)
    assert systems.fingerprint(params["codec"]) == frozen.fingerprint
    assert set(experiment.abstract_state.params) == {"network"}
    assert set(experiment.abstract_state.frozen) == {"codec"}
    model, loaded = load_model(workdir)
    assert model.diffused.shape == (4, 4, 4)
    z = np.zeros((2, 4, 4, 4), np.float32)
    np.testing.assert_array_equal(model.decode(loaded, z), experiment.model.decode(params, z))

    other = tmp_path / "other"
    shutil.copytree(stage, other)
    state = systems.first_stage.read_state(other / systems.first_stage.WEIGHTS)
    changed = {**state, "decoder/conv_out/bias": state["decoder/conv_out/bias"] + 1}
    systems.first_stage.write_state(other / systems.first_stage.WEIGHTS, changed)
    line = command.fails("train", *arguments, f"--config.first_stage.path={other}", "--config.train.steps=20")
    assert "is not the file that first_stage.json beside it was written for" in line


def test_encoded_in_the_step_it_is_the_same_as_prepared(command, stage, latents):
    """Encoding pictures in the step gives the same draws as prepared latents for the same keys."""
    online = open_experiment(
        config_of(command, first_stage__path=str(stage), first_stage__online=True, process__prediction__sigma_data=1.0)
    )
    prepared = open_experiment(latent_config(command, stage, latents, process__prediction__sigma_data=1.0))
    for experiment in (online, prepared):
        experiment.check()
        assert experiment.shown.spec.kind == "pixels"
        assert experiment.shown.spec.shape == (8, 8, 1)
        assert experiment.network.image_shape == (4, 4, 4)
    params, _ = online.read_frozen()
    key = BatchKey.create(stream_key(0, "train"), 128)
    z = [jax.jit(one.model.encode)(params, next(one.pipeline.batches())[DATA], key) for one in (online, prepared)]
    np.testing.assert_allclose(z[0], z[1], atol=1e-4)
    pixels = [one.pictures.arrays("test")[0] for one in (online, prepared)]
    np.testing.assert_array_equal(*pixels)
    reason = "the model gives a probability to latents, which says nothing about pixels"
    with pytest.raises(UserError, match=reason):
        judging.available(prepared, ("bits_per_dim",))
    with pytest.raises(UserError, match="it measures a first stage's reconstructions"):
        judging.available(prepared, ("psnr",))


def test_a_first_stage_that_does_not_fit_is_one_line(command, stage, latents, tmp_path):
    def refused(message, **fields):
        with pytest.raises(UserError, match=message):
            open_experiment(latent_config(command, stage, latents, **fields)).check()

    refused("holds latents of a first stage: name its folder, first_stage.path", first_stage__path="")
    refused(r"there is no first stage in .*: no such folder", first_stage__path=str(tmp_path / "none"))
    refused("first_stage.online encodes pictures, but the data is latents", first_stage__online=True)
    refused("holds no prepared latents: make them with", data__dataset="digits", data__image_size=8)
    refused("data.flip and data.augmentation need pictures, but the data is latents", data__flip=True)
    refused("sampling.clip_x0 is for pixels in", sampling__clip_x0=True)
    refused("latents of latents:.* are 4x4: set it to 4", data__image_size=8)
    other = tmp_path / "other"
    shutil.copytree(stage, other)
    about = other / systems.first_stage.ABOUT
    about.write_text(json.dumps({**json.loads(about.read_text()), "fingerprint": "abc"}))
    refused(r"were made by another first stage \(.*\) than that in .*other \(abc\)", first_stage__path=str(other))
    about.write_text(json.dumps({**json.loads(about.read_text()), "latents": [4, 4, 9]}))
    refused("the codec and the shape of its latents do not fit", first_stage__path=str(other))
    about.unlink()
    refused("it has no first_stage.json: finish its training", first_stage__path=str(other))


def test_what_a_first_stage_has_no_use_for_is_refused(command, stage):
    def refused(message, **fields):
        config = load_config("configs/digits_autoencoder.py:codec=vq")
        config.data.data_dir = str(command.data_dir)
        for name, value in fields.items():
            group, field = name.split("__")
            config[group][field] = value
        with pytest.raises(UserError, match=message):
            open_experiment(config).check()

    refused("sampling.clip_x0: a config with the group codec trains", sampling__clip_x0=True)
    refused("train.class_conditional: a config with the group codec", train__class_conditional=True)
    critic = {"objective__adversarial": 0.1, "objective__discriminator_depth": 1}
    refused("the discriminator's weight comes from the whole batch", **critic, train__accumulation=2)
    refused("needs 24x24 pixels, but the data has 8x8", objective__adversarial=0.1)
    refused("LPIPS needs 16x16 pixels", objective__perceptual=0.1)
    refused("is judged by held-out pictures: set data.validation_split", data__validation_split="")
    refused("num_codes must be a whole number of at least 2", codec__num_codes=1)
    line = command.fails("sample", f"--workdir={stage}")
    assert "is a first stage, which draws no samples" in line
