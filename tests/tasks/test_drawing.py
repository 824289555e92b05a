"""Sampling in one call gives the samples of the underlying parts at any batch size, and names what does not fit."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffusion_jax as dj
from diffusion_jax.conditioning import CONDITIONERS, Conditioning, Label
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.models import MODELS, init_params
from diffusion_jax.models.autoencoders import Identity, Values
from diffusion_jax.objectives.asking import AskingSkipped
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import GRIDS, PROCESSES, Parameterization
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Recipe, describe, rebuild

KEY = jax.random.key(0)
PIXELS = DataSpec(kind="pixels", shape=(4, 4, 1))


def randomised(model):
    params = model.init_params(KEY, init_params)
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)


@pytest.fixture(scope="module")
def of_pixels():
    model = dj.Model(
        data=PIXELS,
        network=MODELS.build("mlp", image_size=4, image_channels=1, num_classes=3, features=8, depth=1),
        process=Parameterization.build(schedule="edm", prediction="edm", time_input="quarter_log_sigma"),
        conditioning=Conditioning(parts=(Label(num_classes=3, class_names=("a", "b", "c")),)),
    )
    return model, randomised(model)


def test_as_by_the_parts_below(of_pixels):
    model, params = of_pixels
    found = dj.sample(model, params, labels=["c", 0], num_inference_steps=5, seed=3)
    denoiser = model.denoiser(params, {"label": jnp.array([2, 0])})
    grid = GRIDS.build("uniform")(model.process.schedule, 5)
    key = BatchKey.create(stream_key(3, "sample"), 2)
    x0 = sample(SAMPLERS.build("dpmpp_2m"), denoiser, grid, (4, 4, 1), key).x0
    np.testing.assert_allclose(np.asarray(found), np.clip(np.round((x0 + 1) * 127.5), 0, 255), atol=1)
    assert (found.dtype, found.shape) == (np.uint8, (2, 4, 4, 1))
    assert np.asarray(found, np.float32).dtype == np.float32
    assert np.asarray(found).std() > 5
    np.testing.assert_array_equal(found.labels, [2, 0])


def test_whatever_the_batch_size(of_pixels):
    model, params = of_pixels
    options = {"num_inference_steps": 4, "num_images": 5, "guidance_scale": 2.0}
    whole = dj.sample(model, params, labels=range(3), **options)
    parts = dj.sample(model, params, labels=range(3), batch_size=2, **options)
    assert len(whole) == 5
    assert np.abs(np.asarray(whole, int) - np.asarray(parts, int)).max() <= 1
    plain = dj.sample(model, params, labels=range(3), **{**options, "guidance_scale": 1.0})
    assert np.abs(np.asarray(whole, int) - np.asarray(plain, int)).max() > 1
    other = dj.sample(model, params, labels=range(3), seed=1, **options)
    assert (np.asarray(whole) != np.asarray(other)).any()
    assert dj.sample(model, params, num_inference_steps=2).shape == (1, 4, 4, 1)
    assert dj.sample(model, params, labels=1, num_inference_steps=2).shape == (1, 4, 4, 1)


def test_a_notebook_shows_a_grid(of_pixels, tmp_path):
    drawn = dj.sample(*of_pixels, labels=range(3), num_images=6, num_inference_steps=2)
    shown = Image.open(io.BytesIO(drawn._repr_png_()))
    assert shown.size == (3 * 48 + 2 * 4, 19 + 2 * 48 + 4), "a column for each class under its name"
    drawn.save(tmp_path / "grid.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), np.asarray(shown))
    np.testing.assert_array_equal(np.asarray(drawn[2:4]), np.asarray(drawn)[2:4])
    np.testing.assert_array_equal(drawn[2:4].labels, [2, 0])
    np.testing.assert_array_equal(drawn[1], next(iter(drawn[1:])))
    assert repr(drawn) == "Samples(6 pictures of 4 x 4 x 1)"
    with pytest.raises(UserError, match="6 pictures have 2 labels"):
        dj.Samples(images=drawn.images, labels=np.arange(2))
    with pytest.raises(UserError, match=r"these are float32 \[2, 4\]"):
        dj.Samples(images=np.zeros((2, 4), np.float32))


def test_the_recipe_says_what_is_left_out(of_pixels):
    model, params = of_pixels
    recipe = Recipe(sampler={"name": "ddim"}, steps=3, guidance={"name": "classifier_free", "scale": 2.0})
    with_recipe = dataclasses.replace(model, sampling=recipe)
    said = {"sampler": "ddim", "num_inference_steps": 3, "guidance_scale": 2.0}
    np.testing.assert_array_equal(
        np.asarray(dj.sample(with_recipe, params, labels=[1])), np.asarray(dj.sample(model, params, labels=[1], **said))
    )
    said["guidance_scale"] = 1.0  # no class is requested, so the recipe's guidance has no effect
    np.testing.assert_array_equal(
        np.asarray(dj.sample(with_recipe, params)), np.asarray(dj.sample(model, params, **said))
    )
    assert rebuild(describe(with_recipe)) == with_recipe


def test_a_network_that_jumps_is_asked_as_it_was_trained(of_pixels):
    """A latent consistency model mixes its input into its output, and limits sampler and steps to those of training."""
    model, params = of_pixels
    jumps = dataclasses.replace(
        model, sampling=Recipe(makes="consistency", asking=AskingSkipped(scaling=1e-3), most_steps=4)
    )
    plain = dataclasses.replace(model, sampling=Recipe(makes="consistency"))
    one, other = (np.asarray(dj.sample(m, params, num_images=4, num_inference_steps=2), int) for m in (jumps, plain))
    assert np.abs(one - other).max() > 1
    with pytest.raises(UserError, match="needs a denoiser, but the model is a consistency: use consistency, lcm, scm"):
        dj.sample(jumps, params, sampler="heun", num_inference_steps=2)
    with pytest.raises(UserError, match="5 steps are more than the model was trained for, which are 4"):
        dj.sample(jumps, params, num_inference_steps=5)


def test_tokens():
    process = PROCESSES.build({"name": "tokens", "num_tokens": 5})
    channels, out = process.channels(1)
    network = MODELS.build("mlp", image_size=4, image_channels=channels, out_channels=out, features=8, depth=1)
    model = dj.Model(data=PIXELS, codec=Values(num_values=5), network=network, process=process)
    found = dj.sample(model, randomised(model), num_images=3, sampler="mdlm", num_inference_steps=4)
    assert set(np.unique(found)) <= {0, 64, 128, 191, 255}
    with pytest.raises(UserError, match="shift moves the times of Gaussian noise, but this model draws tokens"):
        dj.sample(model, randomised(model), num_images=3, num_inference_steps=4, shift=2.0)
    assert found.dtype == np.uint8


@pytest.fixture(scope="module")
def of_texts():
    text = CONDITIONERS.build({"name": "text", **CONDITIONERS._examples["text"]})
    size = {"base_channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "attention_resolutions": (4,)}
    network = MODELS.build(
        {"name": "unet", **size}, image_size=4, image_channels=1, context_channels=8, pooled_channels=8
    )
    model = dj.Model(
        data=PIXELS,
        network=network,
        process=Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="scaled_t"),
        conditioning=Conditioning(parts=(text,)),
    )
    return model, randomised(model)


def test_texts(of_texts):
    options = {"num_images": 1, "sampler": "flow_euler", "num_inference_steps": 3}
    one, other = (dj.sample(*of_texts, prompts=said, **options) for said in ("a red star", "a"))
    assert (np.asarray(one) != np.asarray(other)).any()
    assert one.captions == ("a red star",)
    assert Image.open(io.BytesIO(one._repr_png_())).height > 128, "the caption is under the picture"
    np.testing.assert_array_equal(
        np.asarray(dj.sample(*of_texts, prompts=[""], **options)), np.asarray(dj.sample(*of_texts, **options))
    )
    guided, away = (
        dj.sample(*of_texts, prompts="a red star", guidance_scale=3.0, negative_prompt=said, **options)
        for said in (None, "a star")
    )
    assert (np.asarray(guided) != np.asarray(away)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"asked": {"lable": [1]}}, "did you mean 'label'"),
        ({"prompts": "a star"}, "unknown condition of this model 'text'; known: label"),
        ({"labels": 1, "asked": {"label": [1]}}, "so does labels=...: give one of them"),
        ({"labels": []}, "label has no value"),
        ({"labels": [1], "sampler": "mdlm"}, "is for the process tokens, but the model has gaussian: use .*ddim"),
        ({"labels": [3]}, "there is no class 3"),
        ({"labels": [1], "sampler": "huen"}, "did you mean 'heun'"),
        ({"labels": [1], "sampler": "flow_map"}, "needs a flow_map, but the model is a denoiser: use"),
        ({"labels": [1], "guidance": {"name": "apgg"}}, "did you mean 'apg'"),
        ({"labels": [1], "guidance": "none", "guidance_scale": 2.0}, "guidance none has scale 1"),
        ({"labels": [1], "guidance": "autoguidance", "guidance_scale": 2.0}, "experiments.sample brings"),
        ({"labels": [1], "negative_prompt": 2}, "give guidance_scale=..., such as 2"),
        ({"num_images": 0}, "num_images must be at least 1, it is 0"),
        ({"guidance_scale": 2.0}, "needs a condition to guide towards"),
    ],
)
def test_what_does_not_fit_is_named(of_pixels, options, message):
    with pytest.raises(UserError, match=message) as error:
        dj.sample(*of_pixels, **options)
    assert len(str(error.value).splitlines()) == 1


def test_a_negative_class(of_pixels):
    options = {"labels": [1], "num_inference_steps": 3, "guidance_scale": 3.0}
    away, same = (np.asarray(dj.sample(*of_pixels, negative_prompt=k, **options)) for k in ("c", 2))
    np.testing.assert_array_equal(away, same)
    assert (away != np.asarray(dj.sample(*of_pixels, **options))).any()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"kind": "latents", "shape": (4, 4, 1)}, "has no first stage to decode them: use diffusion_jax.tasks.draw"),
        ({"kind": "tokens", "shape": (4,)}, "experiments.sample --workdir=RUN writes texts"),
    ],
)
def test_what_is_no_picture_is_refused(of_pixels, form, message):
    model, params = of_pixels
    shown = type("Shown", (Identity,), {"shown": lambda self, data: DataSpec(**form)})()
    with pytest.raises(UserError, match=message):
        dj.sample(dataclasses.replace(model, codec=shown), params)


def test_what_is_not_finite_stops(of_pixels):
    model, params = of_pixels
    broken = jax.tree.map(lambda p: p * np.nan, params)
    with pytest.raises(RunError, match="2 of 2 pictures are not finite"):
        dj.sample(model, broken, labels=[0, 1], num_inference_steps=2)
