"""Commands that convert weights in both directions, and the table of parameters."""

import contextlib
import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.digits_unet import get_config
from diffusion_jax import weights
from diffusion_jax.data import DatasetInfo
from diffusion_jax.errors import UserError
from diffusion_jax.models import UNet, init_params
from diffusion_jax.specs import DataSpec
from diffusion_jax.weights import weight_map, write_state
from experiments import convert
from experiments.ground import workdir
from tests.processes import ROOT, TINY

GOLDEN = ROOT / "tests" / "golden" / "dit"


def test_a_pipeline_becomes_a_folder_of_its_own(command, tmp_path):
    source, target = ROOT / "tests" / "golden" / "pipelines" / "sd15", tmp_path / "model"
    out, _ = command.run("convert", f"--source={source}", f"--target={target}")
    assert "3 networks of 161,099 parameters" in out
    for file in source.rglob("*.safetensors"):
        theirs, ours = load_file(file), load_file(target / file.relative_to(source))
        assert theirs.keys() == ours.keys()
        assert all(value.tobytes() == ours[name].tobytes() for name, value in theirs.items())
    assert "is there already: give a new folder" in command.fails("convert", f"--source={source}", f"--target={target}")
    assert "--ema has no meaning" in command.fails("convert", f"--source={source}", "--target=x", "--ema=params")


def test_a_folder_becomes_a_run_and_a_file_again(command, tmp_path):
    run, back = tmp_path / "run", tmp_path / "back.safetensors"
    out, _ = command.run("convert", f"--source={GOLDEN}", f"--target={run}")
    assert "60,800 parameters" in out
    out, _ = command.run("sample", f"--workdir={run}", "--num_samples=4", "--steps=4")
    assert "4 samples of step 0" in out
    images = np.load(run / "samples" / "samples.npz")["images"]
    assert images.shape == (4, 8, 8, 4)
    assert np.isfinite(images).all()

    command.run("convert", f"--source={run}", f"--target={back}", "--format=diffusers_dit")
    assert "is there already: give a new file" in command.fails("convert", f"--source={run}", f"--target={back}")
    theirs, ours = load_file(GOLDEN / "diffusion_pytorch_model.safetensors"), load_file(back)
    assert all(np.array_equal(ours[name], value) for name, value in theirs.items())

    error = command.fails("convert", f"--source={GOLDEN}", f"--target={run}")
    assert "has a run already" in error


def test_a_run_is_written_by_one_conversion(tmp_path, monkeypatch):
    """What another process has written, or is writing, while this one read the weights stays."""
    convert.FLAGS.assume_defaults()
    read = weights.read_weights
    for there, message in ((True, "has a run already"), (False, f"process {os.getpid()} is training in")):
        target = tmp_path / str(there)
        target.mkdir()

        def late(source, target=target, there=there, **options):
            if there:
                (target / "config.json").write_text("theirs")
            return read(source, **options)

        monkeypatch.setattr(weights, "read_weights", late)
        with contextlib.nullcontext() if there else workdir.lock(target), pytest.raises(UserError, match=message):
            convert.convert(GOLDEN, target)
        assert not (target / "checkpoints").exists()


SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "num_train_timesteps": 500,
    "prediction_type": "v_prediction",
    "thresholding": True,
}


def test_a_pipelines_scheduler_becomes_the_runs(command, tmp_path):
    """The scheduler of a pipeline sets the run's schedule, and is preserved when a folder is written and read."""
    pipeline, run, back, again = (tmp_path / name for name in ("pipeline", "run", "back", "again"))
    shutil.copytree(GOLDEN, pipeline / "transformer")
    (pipeline / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "DiTTransformer2DModel"]}))
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    out, _ = command.run("convert", f"--source={pipeline}", f"--target={run}")
    assert "is a pipeline: its transformer is read" in out
    assert "thresholding=True is not supported" in out
    config = workdir.read_config(run)
    schedule = {"name": "scaled_linear", "num_steps": 500, "beta_start": 0.001, "beta_end": 0.02}
    assert config.process.schedule.to_dict() == schedule
    assert (config.process.prediction.name, config.process.time_input.num_steps) == ("v", 500)
    assert (config.sampling.sampler.name, config.sampling.grid.name) == ("dpmpp_2m", "dpm_linspace")
    command.run("sample", f"--workdir={run}", "--num_samples=2", "--steps=4")

    out, _ = command.run("convert", f"--source={run}", f"--target={back}", "--format=diffusers_dit")
    assert sorted(file.name for file in back.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json",
    ]  # fmt: skip
    theirs, ours = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (GOLDEN, back))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    out, _ = command.run("convert", f"--source={back}", f"--target={again}")
    assert "assumed" not in out
    for group in ("model", "process"):
        assert workdir.read_config(again)[group].to_dict() == config[group].to_dict()
    error = command.fails("convert", f"--source={run}", f"--target={back}", "--format=diffusers_dit")
    assert "has a config.json already" in error


def test_what_is_taken_and_what_is_assumed_is_told(command, tmp_path):
    """The command reports which weights it takes and that the scheduler is missing."""
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN, folder)
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    both = {f"ema.{name}": value for name, value in state.items()} | {f"model.{name}": -v for name, v in state.items()}
    save_file(both, folder / "diffusion_pytorch_model.safetensors")
    out, _ = command.run("convert", f"--source={folder}", f"--target={tmp_path / 'run'}")
    assert "taking the average 'ema'; other entries: model" in out
    assert "no scheduler_config.json is there" in out
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "LCMScheduler"}))
    assert "LCMScheduler" in command.fails("convert", f"--source={folder}", f"--target={tmp_path / 'b'}")
    assert not (tmp_path / "b").exists()


def test_weights_can_be_used_without_their_data(command, tmp_path):
    network = UNet(
        image_size=8,
        image_channels=3,
        num_classes=10,
        base_channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
    )
    state = weight_map("diffusion_jax", network).state(init_params(network, jax.random.key(0)))
    write_state(tmp_path / "weights.safetensors", state)
    run, missing = tmp_path / "run", tmp_path / "none"
    data = ("dataset=cifar10", "crop=edm", f"data_dir={missing}")
    command.run(
        "convert",
        f"--source={tmp_path / 'weights.safetensors'}",
        f"--target={run}",
        f"--config={ROOT}/configs/digits_unet.py",
        *TINY,
        *(f"--config.data.{field}" for field in data),
    )
    out, _ = command.run("sample", f"--workdir={run}", "--num_samples=4")
    assert "4 samples of step 0" in out
    assert not missing.exists()


def test_the_number_of_examples_is_known_once_the_data_is_there(tmp_path):
    config = get_config()
    info = DatasetInfo(name="cifar10", split="train", num_examples=0, spec=DataSpec(kind="pixels", shape=(32, 32, 3)))
    workdir.claim(tmp_path, config, info)
    prepared = dataclasses.replace(info, num_examples=50_000)
    workdir.claim(tmp_path, config, prepared)
    assert workdir.read_info(tmp_path) == prepared
    for other in (info, dataclasses.replace(prepared, num_examples=10_000)):
        with pytest.raises(UserError, match="not that of the run"):
            workdir.claim(tmp_path, config, other)


def test_bad_conversions_are_one_line_and_leave_nothing(command, tmp_path):
    target = tmp_path / "run"
    assert "no file or folder" in command.fails("convert", "--source=/nowhere.pt", f"--target={target}")
    assert "no format 'dti'" in command.fails("convert", f"--source={GOLDEN}", f"--target={target}", "--format=dti")
    file = GOLDEN / "diffusion_pytorch_model.safetensors"
    assert "give --config" in command.fails("convert", f"--source={file}", f"--target={target}")
    config = f"--config={ROOT}/configs/papers/dit_xl2_imagenet256.py"
    error = command.fails("convert", f"--source={file}", f"--target={target}", config)
    assert "names of no format of a DiT" in error
    assert not target.exists()


def test_table_of_parameters(command):
    config = f"--config={ROOT}/configs/papers/dit_xl2_imagenet256.py"
    out, _ = command.run("params", config)
    assert "674,834,720 trainable parameters" in out
    assert "118.62 G multiplications" in out
    assert "669,344,256" in out  # 28 blocks of 23,905,152
    out, _ = command.run("params", config, "--json")
    assert json.loads(out)["trainable"] == 674_834_720
    out, _ = command.run("params", config, "--depth=0")
    assert "28x1152x3456" in out
