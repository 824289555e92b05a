"""Every registered adapter that steers by pictures: its inputs, its conditions and its description in a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.adapters import STEERINGS, ControlNetAdapter
from diffusion_jax.conditioning import Conditioning, ControlPicture
from diffusion_jax.conditioning.numbers import Numbers
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, init_params
from diffusion_jax.models.encoders import VisionTransformer
from diffusion_jax.models.network import example_inputs
from diffusion_jax.schedulers import Parameterization
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model, describe, rebuild

UNET = MODELS.build(
    {
        "name": "conditional_unet",
        "channels": (8,),
        "attends": (True,),
        "num_res_blocks": 1,
        "num_heads": 2,
        "context_channels": 6,
        "pooled_channels": 3,
        "norm_groups": 4,
    },
    image_size=8,
    image_channels=2,
)
ENCODER = VisionTransformer(patch_size=4, grid=1, width=8, depth=1, num_heads=2, projection=6)
DATA = DataSpec(kind="pixels", shape=(8, 8, 2))
X, TIME = jnp.ones((2, 8, 8, 2)), jnp.array([100.0, 900.0])
TEXT = {"context": jnp.ones((2, 3, 6)), "pooled": jnp.ones((2, 3))}


def adapter_for(name):
    adapter = STEERINGS.example(name)
    return adapter, adapter.conditioner(UNET, DataSpec(kind="pixels", shape=(16, 16, 3)), ENCODER)


@pytest.mark.parametrize("name", list(STEERINGS))
def test_slots_of_its_own_become_one_of_the_network(name):
    """The adapter's conditioner fills its slots, and the network receives only slots it knows (checked by shapes)."""
    adapter, conditioner = adapter_for(name)
    assert dict(conditioner.gives) == dict(adapter.takes(UNET))
    assert not set(adapter.takes(UNET)) & set(UNET.takes)

    def loss(own, base):
        conditions = {**TEXT, **conditioner(conditioner.init_params(jax.random.key(1)), {}, 2)}
        told = adapter.conditions(UNET, own, X, TIME, conditions)
        assert set(adapter.takes(UNET)).isdisjoint(told)
        return jnp.sum(UNET.apply({"params": base}, X, TIME, told))

    base = jax.eval_shape(lambda: init_params(UNET, jax.random.key(0)))
    own = jax.eval_shape(lambda base: adapter.init(jax.random.key(0), {"network": base}, UNET), base)
    gradient = jax.eval_shape(jax.grad(loss), own, base)
    assert jax.tree.structure(gradient) == jax.tree.structure(own)


@pytest.mark.parametrize("name", list(STEERINGS))
def test_only_text_conditioned_unets_are_steered(name):
    adapter, _ = adapter_for(name)
    with pytest.raises(UserError, match="needs a text-conditioned U-Net, but the network is a DiT"):
        adapter.takes(MODELS.example("dit"))


def test_a_model_with_a_controlnet_is_described_and_rebuilt():
    adapter = ControlNetAdapter(downscaling=1)
    parts = tuple(Numbers(slot=name, count=4) for name in ("a",))
    flow = Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="t")
    plain = MODELS.build({"name": "mlp", "features": 8, "depth": 1}, image_size=8, image_channels=2)
    assert adapter.widths == (16,)
    assert rebuild(describe(adapter)) == adapter
    with pytest.raises(UserError, match="a is given, but the network takes nothing"):
        Model(data=DATA, network=plain, process=flow, conditioning=Conditioning(parts=parts))
    with pytest.raises(UserError, match="needs a text-conditioned U-Net, but the network is a MLP"):
        Model(data=DATA, network=plain, process=flow, adapters=(adapter,))


def test_control_pictures_are_bytes_of_the_datas_size():
    part = ControlPicture(side=4)
    white = np.full((4, 4, 3), 255, np.uint8)
    told = part(None, part.prepare({"control": [white, 0 * white]}), 2)["control_image"]
    np.testing.assert_array_equal(told, np.stack([np.ones((4, 4, 3)), np.zeros((4, 4, 3))]))
    np.testing.assert_array_equal(part.null(None, 1)["control_image"], np.zeros((1, 4, 4, 3)))
    for wrong in (np.zeros((5, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(UserError, match=r"a control picture must be bytes \[4, 4, 3\]"):
            part.prepare({"control": [wrong]})


def test_keys_and_values_of_another_network_are_refused():
    _, _, conditions = example_inputs(UNET, 2)
    wrong = {"down_0_0_attention": ((jnp.zeros((2, 1, 4, 9)), jnp.zeros((2, 1, 4, 9))),)}
    for prompt, message in (
        (wrong, r"must be \[2, 1, tokens, 8\], it is \[2, 1, 4, 9\]"),
        ({"x": ()}, "has x, but the"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(
                lambda prompt: UNET.init(jax.random.key(0), X, TIME, {**conditions, "image_prompt": prompt}), prompt
            )
