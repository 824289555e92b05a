"""A published first stage replaces a trained one: latents prepared once, or encoded in the step."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from diffusion_jax import systems
from diffusion_jax.data import open_dataset
from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.specs import DATA
from experiments.building.kinds import open_experiment
from experiments.ground.config_files import load_config, load_config_module

GOLDEN = Path(__file__).parents[1] / "golden"
STAGE = GOLDEN / "modules" / "autoencoder_kl"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of RGB pictures in two classes, 16 for training and 8 held out."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for index in range(count):
            file = root / split / "ab"[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    return root


@pytest.fixture(scope="module")
def latents(command, pictures, tmp_path_factory):
    """The pictures encoded by the published first stage."""
    folder = tmp_path_factory.mktemp("latents") / "z"
    arguments = (f"--first_stage={STAGE}", f"--dataset=folder:{pictures}", "--image_size=8", f"--out={folder}")
    out, _ = command.run("prepare_latents", *arguments)
    assert "are now in" in out
    again, _ = command.run("prepare_latents", *arguments)
    assert "are already in" in again
    return folder


def experiment_of(command, **fields):
    config = load_config("configs/digits_unet.py")
    config.data.data_dir, config.process.prediction.sigma_data = str(command.data_dir), 1.0
    config.train.batch_size = config.sampling.batch_size = 8
    for name, value in fields.items():
        group, field = name.split("__")
        config[group][field] = value
    return open_experiment(config)


def test_latents_are_prepared_and_trained_on(command, pictures, latents):
    """Mean and standard deviation are stored, and give the same draws as encoding the same batch in the step."""
    about = json.loads((latents / "info.json").read_text())
    stage = systems.load_first_stage(STAGE)
    assert about["first_stage"] == stage.fingerprint
    kept = open_dataset(f"latents:{latents}").source[0]["image"]
    assert kept.shape == (4, 4, 8)
    assert (kept[..., 4:] > 0).all()

    prepared = experiment_of(
        command, data__dataset=f"latents:{latents}", data__image_size=4, first_stage__path=str(STAGE)
    )
    online = experiment_of(
        command, data__dataset=f"folder:{pictures}", first_stage__path=str(STAGE), first_stage__online=True
    )
    for experiment in (prepared, online):
        experiment.check()
        assert experiment.network.image_shape == (4, 4, 4)
    params, record = prepared.read_frozen()
    assert record[systems.CODEC]["fingerprint"] == stage.fingerprint
    key = BatchKey.create(stream_key(0, "train"), 8)
    z = [jax.jit(one.model.encode)(params, next(one.pipeline.batches())[DATA], key) for one in (online, prepared)]
    np.testing.assert_allclose(z[0], z[1], atol=1e-4)
    assert prepared.model.decode(params, np.zeros((1, 4, 4, 4), np.float32)).shape == (1, 8, 8, 3)


def test_a_folder_that_does_not_fit_is_one_line(command, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(STAGE, pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    found = systems.load_first_stage(pipeline)
    assert (found.path, found.info, found.codec.factor) == (pipeline / "vae", None, 2)
    assert systems.fingerprint(found.read_params()) == found.fingerprint
    shutil.rmtree(pipeline / "vae")
    with pytest.raises(UserError, match="has no first stage: neither vae nor vqvae"):
        systems.load_first_stage(pipeline)
    with pytest.raises(UserError, match="holds CLIPTextModel, which is not a first stage"):
        systems.load_first_stage(GOLDEN / "modules" / "clip_text")
    line = command.fails("prepare_latents", f"--first_stage={STAGE}", f"--out={tmp_path}/z")
    assert "a published first stage has no data of its own: give --dataset" in line


RECIPES = ("dit_xl2", "sit_xl2", "shortcut_b2", "meanflow_b4", "min_snr_vit_xl", "ldm4")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_papers_take_real_latents(pictures, latents, name):
    """With prepared latents named after the config, a paper's recipe trains on them and shows decoded pictures."""
    module = load_config_module(f"configs/papers/{name}_imagenet256.py")
    config = module["get_config"](f"{latents},{STAGE}")
    assert config.data.validation_split == "validation"
    assert module["get_config"]().data.dataset == "synthetic_latents"
    small = module["SMOKE"]["model"]
    config.model = ConfigDict(small if "name" in small else {**config.model, **small})
    config.data.update(image_size=4, validation_split="test")
    config.train.batch_size = config.sampling.batch_size = 8
    experiment = open_experiment(config)
    experiment.check()
    assert experiment.network.image_shape == (4, 4, 4)
    assert experiment.shown.spec.shape == (8, 8, 3)
    with pytest.raises(UserError, match="is not FOLDER,FIRST_STAGE"):
        load_config(f"configs/papers/{name}_imagenet256.py:{latents}")


def test_a_recipe_that_extends_another_takes_real_latents_too(latents):
    config = load_config(f"configs/papers/repa_sit_xl2_imagenet256.py:{latents},{STAGE}")
    assert (config.data.dataset, config.first_stage.path) == (f"latents:{latents}", str(STAGE))
