"""Pictures of sizes other than the training size: bounded memory, one program per size, and errors."""

import dataclasses
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import diffusion_jax as dj
from benchmarks import sizes
from diffusion_jax.errors import UserError
from diffusion_jax.models import count_flops, count_parameters, example_inputs, parameter_shapes
from diffusion_jax.models.autoencoders import CODECS
from experiments import generate
from experiments.building.kinds import open_experiment, plan_experiment
from experiments.building.restoring import restore_params
from experiments.evaluating import evaluation
from experiments.ground.config_files import load_config
from tests.fresh_runs import called, fresh_first_stage, fresh_run
from tests.processes import ROOT

SHAPES = ("32x32", "24x48")


def config_of(**fields):
    """The config of a transformer on scenes in two shapes."""
    config = load_config("configs/scenes_any.py:narrow")
    config.data.update(image_size=32, buckets=SHAPES)
    config.data.options = ConfigDict(dict(size=32, num_examples=24, num_test=16, pictures=SHAPES, textured=False))
    config.model.update(patch_size=8, hidden_size=16, depth=1)
    config.train.update(steps=4, batch_size=8)
    config.sampling.update(steps=2, batch_size=4)
    config.log.num_samples = 4
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fresh_run(tmp_path_factory.mktemp("runs") / "any", config_of())


def test_a_picture_of_2048_pixels_fits_into_bounded_memory(optimised):
    """A network trained on 256 pixels samples 2048 pixels in less than 1 GiB; the logits of 16,384 tokens alone would
    take 2 GiB for one head and two evaluations."""
    config = load_config("configs/scenes_any.py:narrow")
    config.data.options.update(num_examples=24, num_test=16)
    experiment = open_experiment(config)
    model = experiment.picture_model(2048, 2048)
    generator = evaluation.generator(experiment, batch_size=1, model=model, steps=2)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), experiment.abstract_state.params)
    assert generator.lower(params).compile().memory_analysis().temp_size_in_bytes < 2**30


@pytest.mark.slow
def test_large_latents_are_decoded_in_tiles(optimised):
    """Decoding 2048 x 2048 pixels in tiles with an untrained f8 decoder takes less than half of the memory."""
    codec = CODECS.build({"name": "kl", "size": "small_f8", "channels": (24, 32, 48, 64), "latent_channels": 4})
    tiled = dataclasses.replace(codec.decoding_in_tiles(), tile=256)
    shapes = jax.eval_shape(codec.init_params, jax.random.key(0))
    z = jax.ShapeDtypeStruct((1, 256, 256, 4), np.float32)
    decoder = jax.jit(tiled.decode).lower(shapes, z).compile().memory_analysis()
    whole = jax.jit(codec.decode).lower(shapes, z).compile().memory_analysis()
    assert decoder.temp_size_in_bytes < 0.5 * whole.temp_size_in_bytes
    assert decoder.temp_size_in_bytes < 2**30


def test_a_model_of_large_pictures_has_tiles_and_one_of_small_ones_has_none(tmp_path):
    stage = fresh_first_stage(tmp_path / "stage")
    config = config_of(**{"first_stage.path": str(stage), "first_stage.online": True, "model.patch_size": 1})
    config.data.update(image_size=24, buckets=())
    config.data.options = ConfigDict(dict(size=24, num_examples=24, num_test=16))
    model = open_experiment(config).model
    assert model.of_size(32, 64).diffused.shape == (8, 16, 16)
    with pytest.raises(
        UserError, match="34x32 pixels are not divisible by 4, 4 of the first stage times 1 of the network"
    ):
        model.of_size(34, 32)
    codec = CODECS.build({"name": "kl", "size": "small_f4", "latent_channels": 16})  # a codec with stages
    model = dataclasses.replace(model, codec=codec)
    assert model.of_size(1024, 1024).codec is codec
    assert model.of_size(1024, 2048).codec == codec.decoding_in_tiles() != codec


def test_the_size_that_is_asked_for_is_drawn(run, tmp_path):
    """The command and Python draw the requested size; another time shift gives another picture."""
    flags = [f"--workdir={run}", "--prompt=a red star", "--height=48", "--width=64", "--guidance_scale=1"]
    called(generate, *flags, f"--out={tmp_path / 'drawn.png'}")
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.size == (64, 48)
    model, params = dj.load_model(run)
    options = {"prompts": "a red star", "num_inference_steps": 2, "sampler": "flow_euler", "height": 48, "width": 64}
    made = dj.sample(model, params, **options)
    assert made.shape == (1, 48, 64, 3)
    unshifted = dj.sample(model, params, shift=1.0, **options)
    assert np.abs(np.asarray(made, int) - np.asarray(unshifted)).max() > 1


def test_the_network_is_told_the_size_that_is_drawn(run):
    experiment, _, _ = restore_params(run)
    told = next(part for part in experiment.picture_model(48, 64).conditioning.parts if "sizes" in part.gives)
    assert told.unsaid == (48, 64, 0, 0, 48, 64)
    own = next(part for part in experiment.model.conditioning.parts if "sizes" in part.gives)
    assert own.unsaid == (32, 32, 0, 0, 32, 32)
    assert experiment.picture_model(64, 64).shift_from(experiment.model) == 2.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--height=50",), "--height and --width: 50x32 pixels are not divisible by 8, 1 of the first stage times 8"),
        (("--width=36",), "take 32 or 40 instead of 36"),
        (("--shift=0",), "--shift"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_one_line(run, flags, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        called(generate, f"--workdir={run}", "--prompt=a star", f"--out={tmp_path / 'out'}", *flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.buckets": ("32x36",)}, "data.buckets has 32x36: 32x36 pixels are not divisible by 8"),
        ({"data.buckets": ("32x32", "x")}, "data.buckets has 'x'"),
        ({"data.crop": "adm"}, "cuts squares"),
    ],
)
def test_buckets_that_the_network_does_not_take_are_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        open_experiment(config_of(**fields)).check()
    assert "\n" not in str(error.value)


def test_the_recipe_of_2048_pixels_is_traced():
    """The network, the loss and one train step on two pictures are traced by shapes alone."""
    config = load_config("configs/scenes_2k.py")
    config.train.batch_size = 2
    experiment = plan_experiment(config)
    assert count_parameters(experiment.network) == 561_851_136
    state, batch = jax.eval_shape(experiment.init_state), experiment.abstract_batch(2)
    after, metrics = jax.eval_shape(experiment.train_step(), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "loss" in metrics


def test_what_a_size_costs_is_what_the_page_says():
    """The operations in one row of the table in docs/sizes.md are counted again."""
    model = plan_experiment(load_config("configs/scenes_any.py")).model
    shape = model.of_size(2048, 2048).diffused.shape
    inputs = (parameter_shapes(model.network), *jax.eval_shape(lambda: example_inputs(model.network, 1, shape)))
    counted = count_flops(sizes.programs(model.network)[0], *inputs) / 1e9
    page = (ROOT / "docs" / "sizes.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| 2048 x 2048 |"))
    assert f"| {counted:,.1f} |" in row, "run `python -m benchmarks.sizes --page=docs/sizes.md`"


@pytest.mark.slow
def test_a_killed_training_on_buckets_goes_on_to_the_same_bits(command, tmp_path):
    shapes = "('32x32','24x40')"
    fields = {
        "data.buckets": shapes, "data.options.pictures": shapes, "data.options.size": 32, "data.image_size": 32,
        "data.options.num_examples": 64, "data.options.max_objects": 1, "model.patch_size": 8, "model.hidden_size": 16,
        "train.steps": 12, "train.batch_size": 4, "checkpoint.every": 4, "log.every": 1, "log.num_samples": 4,
        "evaluation.num_samples": 2,
    }  # fmt: skip
    flags = ["--config=configs/scenes_any.py:narrow", *(f"--config.{name}={value}" for name, value in fields.items())]
    command.run("train", *flags, f"--workdir={tmp_path / 'whole'}")
    process = command.start("train", *flags, f"--workdir={tmp_path / 'killed'}")
    until = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "4").is_dir() and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    out, _ = command.run("train", *flags, f"--workdir={tmp_path / 'killed'}")
    assert "resuming" in out
    whole, killed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert whole.count(b"\n") == 12
