"""The user's own pictures: one command from a folder to a trained network."""

import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.folder import get_config
from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.ground import cli
from experiments.ground.config_files import takes_resolution

QUICK = (
    *("--config.train.steps=6", "--config.log.every=2", "--config.log.num_samples=4", "--config.sampling.steps=2"),
    *("--config.model.base_channels=8", "--config.model.num_res_blocks=1", "--config.evaluation.num_samples=8"),
    *("--config.log.sample_every=3", "--config.log.validate_every=3", "--config.checkpoint.every=3"),
)


def save(path, random, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """A folder of twenty JPEG files in two sizes and two classes."""
    random = np.random.default_rng(0)
    for i in range(20):
        save(tmp_path / "pictures" / ("cat" if i % 2 else "dog") / f"{i}.jpg", random, (20, 24) if i % 3 else (17, 16))
    return tmp_path / "pictures"


def test_one_command_and_no_refusal(command, folder, tmp_path):
    run = tmp_path / "run"
    arguments = ("--config=folder", f"--data={folder}", "--resolution=8", f"--workdir={run}", *QUICK)
    printed, _ = command.run("train", *arguments)
    assert "validation takes batches of 2, there are 2 held-out examples" in printed
    config = json.loads((run / "config.json").read_text())
    assert (config["data"]["dataset"], config["data"]["image_size"]) == (f"folder:{folder}", 8)
    assert (run / "report.html").is_file()
    assert (run / "samples" / "final.png").is_file()


@pytest.mark.parametrize("layout", ["flat", "metadata"])
def test_folders_of_other_forms(layout, folder):
    files = sorted(folder.rglob("*.jpg"))
    for file in files:
        file.rename(folder / file.name)
    for name in ("cat", "dog"):
        (folder / name).rmdir()
    if layout == "metadata":
        rows = [{"file_name": file.name, "label": file.stem[-1], "text": "noise"} for file in files]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = get_config("8")
    config.data.dataset = f"folder:{folder}"
    config.data.options.held_out = 0.5  # so that each of the eight devices has a picture
    experiment = Experiment(config)
    experiment.check()
    assert experiment.num_classes == (10 if layout == "metadata" else 0)
    batch = next(experiment.pipeline.batches())
    assert batch["data"].shape == (32, 8, 8, 3)


def test_one_command_of_a_parquet_file(command, folder, tmp_path):
    """The command detects a Parquet file by its content; nothing else differs."""
    files = sorted(folder.rglob("*.jpg"))
    rows = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "set" / "pictures.parquet")
    arguments = ("--config=folder", f"--data={tmp_path / 'set'}", "--resolution=8", "--dry_run", *QUICK)
    printed, _ = command.run("train", *arguments)
    assert "6 steps of 32: 10.67 of 18 images" in printed


def test_the_network_suits_the_resolution():
    levels = {size: len(get_config(str(size)).model.channel_multipliers) for size in (8, 12, 16, 32, 48, 64, 128, 256)}
    assert levels == {8: 1, 12: 2, 16: 2, 32: 3, 48: 4, 64: 4, 128: 5, 256: 5}
    for wrong in ("0", "7", "18", "512", "-8", "many", "", "64.0"):
        with pytest.raises(ValueError, match="must be a multiple of 4 from 8 to 256"):
            get_config(wrong)


def read(*words):
    flags = cli.Flags("a command", "")
    config = flags.config()
    flags.path("data", None, "a folder")
    flags.integer("resolution", None, "pixels", lower=1, upper=2**14)
    flags.read(["program", *words])
    return config.value, flags


def test_what_the_two_flags_stand_for():
    config, flags = read("--config", "folder", "--resolution=16", "--data=my/folder")
    assert (config.data.dataset, config.data.image_size) == ("folder:my/folder", 16)
    assert flags.config_words() == ["--config=folder:16", "--config.data.dataset=folder:my/folder"]
    config, _ = read("--config=digits_unet", "--data=x", "--resolution=32")
    assert (config.data.dataset, config.data.image_size) == ("folder:x", 32)
    assert takes_resolution("folder")
    assert not takes_resolution("folder:16")
    assert not takes_resolution("digits_unet")
    with pytest.raises(UserError, match="must be a multiple of 4 from 8 to 256, it is 6"):
        read("--config=folder", "--resolution=6")
    with pytest.raises(UserError, match="--resolution"):
        read("--config=folder", "--resolution=-6")
