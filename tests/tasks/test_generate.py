"""Samples in one call: those of the parts below, whatever the batch size; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.conditioning import CONDITIONERS, Conditioning, Label
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.models import MODELS, init_params
from diffusion_jax.models.autoencoders import Values
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import GRIDS, PROCESSES, Parameterization
from diffusion_jax.specs import DataSpec

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
    found = dj.generate(model, params, {"label": ["c", 0]}, key=KEY, steps=5)
    denoiser = model.denoiser(params, {"label": jnp.array([2, 0])})
    grid = GRIDS.build("uniform")(model.process.schedule, 5)
    x0 = sample(SAMPLERS.build("heun"), denoiser, grid, (4, 4, 1), BatchKey.create(KEY, 2)).x0
    np.testing.assert_allclose(found, np.clip(np.round((x0 + 1) * 127.5), 0, 255), atol=1)
    assert found.dtype == np.uint8
    assert found.std() > 5


def test_whatever_the_batch_size(of_pixels):
    model, params = of_pixels
    options = {"key": KEY, "steps": 4, "num_samples": 5, "guidance": 2.0}
    whole = dj.generate(model, params, {"label": [0, 1, 2]}, **options)
    parts = dj.generate(model, params, {"label": [0, 1, 2]}, batch_size=2, **options)
    assert whole.shape == (5, 4, 4, 1)
    assert np.abs(whole.astype(int) - parts).max() <= 1
    plain = dj.generate(model, params, {"label": [0, 1, 2]}, **{**options, "guidance": 1.0})
    assert np.abs(whole.astype(int) - plain).max() > 1
    assert dj.generate(model, params, key=KEY, steps=2).shape == (1, 4, 4, 1)


def test_tokens():
    process = PROCESSES.build({"name": "tokens", "num_tokens": 5})
    channels, out = process.channels(1)
    network = MODELS.build("mlp", image_size=4, image_channels=channels, out_channels=out, features=8, depth=1)
    model = dj.Model(data=PIXELS, codec=Values(num_values=5), network=network, process=process)
    found = dj.generate(model, randomised(model), key=KEY, num_samples=3, sampler="mdlm", steps=4)
    assert set(np.unique(found)) <= {0, 64, 128, 191, 255}
    assert found.dtype == np.uint8


def test_texts():
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
    params = randomised(model)
    options = {"key": KEY, "num_samples": 1, "sampler": "flow_euler", "steps": 3}
    one, other = (dj.generate(model, params, {"text": [said]}, **options) for said in ("a red star", "a"))
    assert (one != other).any()
    np.testing.assert_array_equal(
        dj.generate(model, params, {"text": [""]}, **options), dj.generate(model, params, **options)
    )


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ({"lable": [1]}, {}, "did you mean 'label'"),
        (
            {"label": [1]},
            {"sampler": "mdlm"},
            "is of the process tokens, the model of gaussian: use .*ddim",
        ),
        ({"label": [3]}, {}, "there is no class 3"),
        ({"label": [1]}, {"sampler": "huen"}, "did you mean 'heun'"),
        ({"label": [1]}, {"guidance": {"name": "apgg"}}, "did you mean 'apg'"),
        ({"label": [1]}, {"num_samples": 0}, "at least 1"),
        (None, {"guidance": 2.0}, "nothing is"),
    ],
)
def test_what_does_not_fit_is_named(of_pixels, asked, options, message):
    with pytest.raises(UserError, match=message):
        dj.generate(*of_pixels, asked, key=KEY, **options)


def test_what_is_not_finite_stops(of_pixels):
    model, params = of_pixels
    broken = jax.tree.map(lambda p: p * np.nan, params)
    with pytest.raises(RunError, match="2 of 2 samples are not finite"):
        dj.generate(model, broken, {"label": [0, 1]}, key=KEY, steps=2)
