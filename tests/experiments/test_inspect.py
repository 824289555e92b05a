"""inspect, --print_config and --dry_run show what a config means before training."""

import numpy as np
import PIL.Image
import pytest

from configs.digits_unet import get_config
from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.ground import workdir
from experiments.ground.cli import load_config
from experiments.running import inspection


def text_of(table):
    return {name: list(cells) for name, *cells in table.rows}


@pytest.fixture(scope="module")
def digits(data_dir):
    config = get_config()
    config.data.data_dir = str(data_dir)
    return Experiment(config)


def test_inspect_shows_all_of_it_and_writes_the_picture_alone(command, data_dir, tmp_path):
    picture = tmp_path / "batch.png"
    arguments = ("--config=digits_unet", f"--config.data.data_dir={data_dir}", f"--picture={picture}")
    out, _ = command.run("inspect", *arguments, "--config.train.steps=90")
    for words in ("train.steps", "Heun, 18 steps", "702,753", "8.017 of 1,437 images", "every check of a training"):
        assert words in out
    assert list(tmp_path.iterdir()) == [picture]
    assert PIL.Image.open(picture).size[0] > 100


def test_numbers_of_the_tables(digits):
    parts = text_of(inspection.parts_of(digits))
    assert parts["data"] == ["digits, train: 1,437 examples of pixels 8x8x1, 10 classes"]
    assert parts["told"] == ["label one number (asked)"]
    assert text_of(inspection.shapes_of(digits)) == {
        "data": ["128x8x8x1", "float32"],
        "label": ["128", "int32"],
    }
    assert text_of(inspection.groups_of(digits)) == {"network": ["trained", "702,753", "2.81 MB"]}
    steps = text_of(inspection.schedule_of(digits))
    assert steps["steps"] == ["900 of 128 images, 115,200 in all"]
    assert steps["epochs"] == ["80.17 of 1,437 images"]
    assert steps["saved"] == ["every 150 steps, 6 times"]


def test_the_picture_is_of_the_batch_that_training_sees(digits, tmp_path):
    inspection.save_batch(digits, tmp_path / "batch.png")
    seen = np.asarray(PIL.Image.open(tmp_path / "batch.png"))[..., 0]
    first = next(digits.pipeline.batches())
    zero = first["data"][:36][first["label"][:36] == 0][0, :, :, 0]
    top = next(y for y in range(seen.shape[0]) if np.array_equal(seen[y : y + 48 : 6, :48:6], as_bytes(zero)))
    assert top < 40, "below its caption"


def as_bytes(image):
    return np.rint((image + 1) * 127.5).astype(np.uint8)


def test_data_that_is_not_there_is_named_at_the_end(command, tmp_path):
    arguments = ("--config=papers/edm_cifar10", f"--config.data.data_dir={tmp_path}", "--nofields")
    out, err = command.run("inspect", *arguments, code=2)
    assert "55,7" in out, "the network is known"
    assert "not known before the data is there" in out
    assert "cannot be trained yet: dataset 'cifar10' is not prepared" in err
    assert len(err.strip().splitlines()) == 1


def test_a_first_stage_and_text_have_no_picture(tmp_path):
    experiment, missing = inspection.look_at(load_config("digits_autoencoder"))
    assert not missing
    assert "codec" in text_of(inspection.parts_of(experiment))
    config = load_config("imagenet256_dit_xl2")
    with pytest.raises(UserError, match="--picture needs pictures, but the data is latents"):
        inspection.save_batch(Experiment(config), tmp_path / "x.png")


def test_print_config_is_a_config(command, tmp_path):
    out, _ = command.run("train", "--config=digits_unet", "--config.train.steps=7", "--print_config")
    (tmp_path / "config.json").write_text(out)
    again = load_config(f"configs/from_json.py:{tmp_path / 'config.json'}")
    expected = get_config()
    expected.train.steps = 7
    assert workdir.digest(again) == workdir.digest(expected)


def test_a_dry_run_writes_nothing(command, tmp_path, finished):
    out, _ = command.run("train", *command.train_arguments(tmp_path / "run", "--dry_run"))
    assert "60 steps of 32: 1.336 of 1,437 images" in out
    assert "nothing was written or claimed" in out
    assert not list(tmp_path.iterdir())
    assert "would continue" in command.run("train", *command.train_arguments(finished[0], "--dry_run"))[0]
    other = command.train_arguments(finished[0], "--dry_run", "--config.seed=1")
    assert "belongs to a run with another config" in command.fails("train", *other)
    wrong = command.train_arguments(tmp_path / "run", "--dry_run", "--config.model.name=unett")
    assert "did you mean 'unet'?" in command.fails("train", *wrong)
