"""A model checks that its parts fit, groups its parameters, and names the parts that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, init_params
from diffusion_jax.models.autoencoders import Values
from diffusion_jax.schedulers import Parameterization, TokenProcess
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model

PIXELS = DataSpec(kind="pixels", shape=(4, 4, 1))
FLOW = Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="t")
LABELS = Conditioning(parts=(Label(num_classes=3),))


def mlp(**fields):
    return MODELS.build(
        {"name": "mlp", "features": 8, "depth": 1}, image_size=4, image_channels=1, **{"num_classes": 3, **fields}
    )


def test_parameters_are_groups():
    model = Model(data=PIXELS, network=mlp(), process=FLOW, conditioning=LABELS)
    params = model.init_params(jax.random.key(0), init_params)
    assert list(params) == ["network"]
    jax.tree.map(np.testing.assert_array_equal, params["network"], init_params(model.network, jax.random.key(0)))
    batch = {"label": jnp.array([0, 2])}
    conditions = model.conditions(params, batch, 2)
    prediction = model.denoiser(params, conditions)(jnp.ones((2, 4, 4, 1)), jnp.float32(0.5))
    assert prediction.x0.shape == (2, 4, 4, 1)
    assert model.without(params, conditions, 2)["label"].tolist() == [3, 3]


def test_a_flow_map_takes_a_second_time():
    model = Model(data=PIXELS, network=mlp(num_times=2), process=FLOW, conditioning=LABELS)
    assert model.is_flow_map
    params = model.init_params(jax.random.key(0), init_params)
    params = jax.tree.map(lambda p: p + 0.1, params)
    denoise = model.denoiser(params, model.conditions(params, {"label": jnp.array([1])}, 1))
    x, t = jnp.ones((1, 4, 4, 1)), jnp.float32(0.5)
    np.testing.assert_array_equal(denoise(x, t).x0, denoise(x, t, t).x0)
    assert float(jnp.abs(denoise(x, t).x0 - denoise(x, t, jnp.float32(0.1)).x0).max()) > 1e-4


def test_parts_that_do_not_fit_are_named():
    tokens = TokenProcess(num_tokens=4)
    with pytest.raises(UserError, match=r"TokenProcess diffuses tokens, but Identity .* pixels"):
        Model(data=PIXELS, network=mlp(), process=tokens, conditioning=LABELS)
    with pytest.raises(UserError, match=r"Parameterization diffuses pixels or latents, but Values .* tokens"):
        Model(data=PIXELS, codec=Values(num_values=4), network=mlp(), process=FLOW, conditioning=LABELS)
    with pytest.raises(UserError, match="takes label, but no conditioner fills it"):
        Model(data=PIXELS, network=mlp(), process=FLOW)
