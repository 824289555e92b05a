"""Models as folders: a saved model loads unchanged, and damage is reported in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, init_params
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import DataSpec


@pytest.fixture
def saved(tmp_path):
    network = MODELS.build("mlp", image_size=4, image_channels=1, num_classes=3, features=8, depth=1)
    model = dj.Model(
        data=DataSpec(kind="pixels", shape=(4, 4, 1)),
        network=network,
        process=Parameterization.build(schedule="edm", prediction="edm", time_input="quarter_log_sigma"),
        conditioning=Conditioning(parts=(Label(num_classes=3),), dropout={("label",): 0.1}),
    )
    params = model.init_params(jax.random.key(0), init_params)
    dj.save_model(tmp_path / "model", model, params)
    return tmp_path / "model", model, params


def test_a_saved_model_is_loaded_as_it_was(saved):
    folder, model, params = saved
    again, loaded = dj.load_model(folder)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))
    x, t, batch = jnp.ones((2, 4, 4, 1)), jnp.float32(0.5), {"label": jnp.array([0, 2])}
    first, second = (m.denoiser(p, m.conditions(p, batch, 2))(x, t).x0 for m, p in ((model, params), (again, loaded)))
    np.testing.assert_array_equal(first, second)


def damage_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")


def other_part(folder):
    about = json.loads((folder / "model.json").read_text())
    about["model"]["network"]["part"] = "MLPP"
    (folder / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "is not what model.json beside it was written for"),
        (other_part, "did you mean 'MLP'"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json"),
        (lambda folder: (folder / "model.json").write_text("{}"), "describes no model"),
        (lambda folder: (folder / "model.json").write_text("[]"), "model.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors"),
        (lambda folder: (folder / "model.json").unlink(), "does not name its network|holds no"),
    ],
)
def test_damage_is_one_line(saved, damage, message):
    damage(saved[0])
    with pytest.raises(UserError, match=message) as error:
        dj.load_model(saved[0])
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_model_is_named(saved, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        dj.load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run: step and average"):
        dj.load_model(saved[0], step=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        dj.load_model(tmp_path / "empty")
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        dj.load_modle("x")
