"""The text-conditioned U-Net and its ControlNet; tests/weights compares published ones with their outputs."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import (
    MODELS,
    ControlNet,
    controlnet_params,
    count_parameters,
    init_params,
    parameter_shapes,
    scaled_control,
    summed_controls,
)
from diffusion_jax.weights.published import controlnet as controlnet_names
from diffusion_jax.weights.published import unet as unet_names
from diffusion_jax.weights.published.unet_config import build_controlnet, build_unet

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "pipelines" / "counts.json").read_text())["models"]
SMALL = {"channels": (8,), "attends": (True,), "num_res_blocks": 1, "num_heads": 2, "norm_groups": 4}
SMALL |= {"image_size": 4, "image_channels": 2, "context_channels": 6}
UNET = MODELS.build({"name": "conditional_unet", **SMALL, "transformer_depth": 2})
CONTROL = ControlNet(**SMALL, transformer_depth=2, embedding_channels=(3, 4))
QUICK = {"xla_backend_optimization_level": 0}


def drawn(tree, seed=0):
    """Random parameters, so that every part of the network has an effect."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(leaf + 0.2 * draw.standard_normal(leaf.shape)), jax.device_get(tree))


@pytest.fixture(scope="module")
def params():
    return drawn(init_params(UNET, jax.random.key(0)))


@pytest.fixture(scope="module")
def inputs():
    draw = np.random.default_rng(1)
    shapes = {"x": (8, 4, 4, 2), "context": (8, 3, 6), "picture": (8, 8, 8, 3)}
    x, context, picture = (np.float32(draw.standard_normal(shape)) for shape in shapes.values())
    return x, np.linspace(0, 999, 8, dtype=np.float32), context, picture


SD15 = COUNTS["sd15_unet"]["config"]
SDXL = COUNTS["sdxl_base_unet"]["config"]
SD2 = {**SD15, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
REFINER = {
    **SDXL,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}


@pytest.mark.parametrize("name", ["sd15_unet", "sdxl_base_unet", "instruct_pix2pix_unet_8ch", "controlnet_sd15"])
def test_published_sizes(name):
    """The numbers of parameters and of mapped tensors equal those of the published networks."""
    entry = COUNTS[name]
    control = entry["cls"] == "ControlNetModel"
    network = (build_controlnet if control else build_unet)(entry["config"])
    assert count_parameters(network) == entry["params"]
    assert control or by_layers(entry["config"]) == entry["params"]
    names = (controlnet_names if control else unet_names).diffusers_map(network).names()
    assert len(names) == len(set(names)) == entry["tensors"]


def by_layers(config):
    """The number of parameters, counted by the layers in the paper's figure without the network's code."""
    channels, context = config["block_out_channels"], config["cross_attention_dim"]
    time = 4 * channels[0]
    depth = config["transformer_layers_per_block"]
    depths = depth if isinstance(depth, list) else [depth] * len(channels)
    conv = lambda a, b: 9 * a * b + b  # noqa: E731
    dense = lambda a, b: a * b + b  # noqa: E731

    def res_block(a, b):
        return 2 * a + conv(a, b) + dense(time, b) + 2 * b + conv(b, b) + (dense(a, b) if a != b else 0)

    def transformer(c, depth):
        cross = c * c + 2 * c * context + dense(c, c)
        block = 3 * 2 * c + (3 * c * c + dense(c, c)) + cross + dense(c, 8 * c) + dense(4 * c, c)
        return 2 * c + 2 * dense(c, c) + depth * block

    total = dense(channels[0], time) + dense(time, time)
    total += conv(config["in_channels"], channels[0]) + 2 * channels[0] + conv(channels[0], config["out_channels"])
    if config["addition_embed_type"]:
        total += dense(config["projection_class_embeddings_input_dim"], time) + dense(time, time)
    if config["time_cond_proj_dim"]:
        total += config["time_cond_proj_dim"] * channels[0]
    if config["num_class_embeds"]:
        total += config["num_class_embeds"] * time
    attends = ["Cross" in kind for kind in config["down_block_types"]]
    kept, width, layers = [channels[0]], channels[0], config["layers_per_block"]
    for level, c in enumerate(channels):
        for _ in range(layers):
            total += res_block(width, c) + (transformer(c, depths[level]) if attends[level] else 0)
            width = c
            kept.append(c)
        if level < len(channels) - 1:
            total += conv(c, c)
            kept.append(c)
    total += 2 * res_block(width, width) + transformer(width, depths[-1])
    for level, c in reversed(list(enumerate(channels))):
        for _ in range(layers + 1):
            total += res_block(width + kept.pop(), c) + (transformer(c, depths[level]) if attends[level] else 0)
            width = c
        total += conv(c, c) if level else 0
    return total


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SD2, 865_910_724),
        (REFINER, 2_259_526_660),
        ({**SD15, "in_channels": 9, "time_cond_proj_dim": 256}, 859_520_964 + 5 * 9 * 320 + 256 * 320),
        ({**SD2, "in_channels": 7, "num_class_embeds": 1000}, 865_910_724 + 3 * 9 * 320 + 1000 * 1280),
    ],
)
def test_sizes_follow_from_the_layers(config, count):
    assert count_parameters(build_unet(config)) == by_layers(config) == count


def test_blocks_of_a_transformer_are_one_scan():
    """The program does not grow with the number of transformer blocks."""
    products = []
    for depth in (2, 10):
        network = UNET.clone(transformer_depth=depth)
        inputs = (jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), {"context": jnp.zeros((1, 3, 6))})
        program = jax.make_jaxpr(lambda p, *i, n=network: n.apply({"params": p}, *i))
        products.append(str(program(parameter_shapes(network), *inputs)).count("dot_general"))
    assert products[0] == products[1] > 20


@pytest.mark.parametrize(("size", "coarse"), [(7, 4), (5, 3), (9, 5), (8, 4), (33, 17)])
def test_odd_sizes_go_up_to_the_size_of_what_was_kept(size, coarse):
    """Nearest-neighbour upsampling with index floor(i * coarse / size) equals doubling every pixel and cutting."""
    nearest = [math.floor(i * coarse / size) for i in range(size)]
    assert nearest == list(np.repeat(np.arange(coarse), 2)[:size])


def test_images_of_any_size():
    network = MODELS.build({"name": "conditional_unet", **SMALL, "channels": (8, 8, 8), "attends": (False,) * 3})
    shape = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, jnp.zeros(1), {"context": jnp.zeros((1, 1, 6))})[0],
        jnp.zeros((1, 7, 10, 2)),
    )
    assert shape.shape == (1, 7, 10, 2)


def test_a_control_of_zeros_is_none_and_other_residuals_act(params, inputs):
    x, time, context, picture = inputs
    fresh = init_params(CONTROL, jax.random.key(0))
    own = controlnet_params(fresh, params)
    jax.tree.map(np.testing.assert_array_equal, own["down_0_0"], params["down_0_0"])
    assert own["zero_0"] is fresh["zero_0"]

    @jax.jit
    def steered(own, scale):
        conditions = {"context": context, "control_image": picture}
        control = CONTROL.apply({"params": own}, x, time, conditions)
        control = summed_controls([scaled_control(control, scale), scaled_control(control, scale, guess_mode=True)])
        return UNET.apply({"params": params}, x, time, {"context": context, "control": control})

    plain = jax.jit(UNET.apply)({"params": params}, x, time, {"context": context})
    np.testing.assert_allclose(steered(own, 1.0), plain, atol=2e-5)
    trained = drawn(own, 3)
    np.testing.assert_allclose(steered(trained, 0.0), plain, atol=2e-5)
    assert float(jnp.abs(steered(trained, 1.0) - plain).max()) > 0.1


def test_guess_mode_weakens_the_finest_most():
    ones = {"down": tuple(np.ones(1) for _ in range(12)), "mid": np.ones(1)}
    found = scaled_control(ones, 0.5, guess_mode=True)
    found = np.concatenate([*found["down"], found["mid"]])
    np.testing.assert_allclose(found, 0.5 * 10 ** (np.arange(13) / 12 - 1), rtol=1e-6)


@pytest.mark.slow
def test_every_parameter_of_a_controlnet_is_trained(params, inputs):
    """Every parameter gets a gradient once the zero convolutions are no longer zero."""
    x, time, context, picture = (part[:2] for part in inputs)
    own = drawn(controlnet_params(init_params(CONTROL, jax.random.key(0)), params), 3)

    @jax.jit
    @jax.grad
    def gradient(own):
        control = CONTROL.apply({"params": own}, x, time, {"context": context, "control_image": picture})
        return jnp.mean((UNET.apply({"params": params}, x, time, {"context": context, "control": control}) - 1) ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(own)):
        assert bool(jnp.isfinite(leaf).all()), path
        assert bool((leaf != 0).any()), path


def test_eight_devices_compute_what_one_does(params, inputs):
    x, time, context, _ = inputs
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda p, x, time, context: UNET.apply({"params": p}, x, time, {"context": context}))
    divided = run(params, *(jax.device_put(part, rows) for part in (x, time, context)))
    assert len(divided.sharding.device_set) == 8
    np.testing.assert_allclose(divided, run(params, x, time, context), atol=2e-6)


@pytest.mark.slow
def test_computing_again_gives_the_same_gradients(params, inputs):
    x, time, context, _ = (part[:1] for part in inputs)

    def gradient(network):
        loss = lambda p: jnp.sum(jnp.sin(network.apply({"params": p}, x, time, {"context": context})))  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(params)

    expected, found = gradient(UNET), gradient(UNET.clone(remat="full"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    again = UNET.clone(remat="dots")
    jaxpr = jax.make_jaxpr(lambda p: again.apply({"params": p}, x, time, {"context": context}))(params)
    assert str(jaxpr).count("remat") + str(jaxpr).count("checkpoint") >= len(UNET.down_stages()) + 2


def test_what_does_not_fit_is_named(params, inputs):
    x, time, context, picture = inputs

    def refused(network, message, **conditions):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(network.apply, {"params": params}, x, time, {"context": context, **conditions})

    one = {"down": (np.zeros((8, 4, 4, 8)),), "mid": np.zeros((8, 4, 4, 8))}
    refused(UNET, "control belongs to another network", control=one)
    refused(UNET, "control has the residuals 'down' and 'mid', got", control={"down": ()})
    refused(UNET, "takes the conditions", weather=context)
    refused(CONTROL, r"takes control_image as \[8, 8, 8, 3\], got \[8, 4, 4, 3\]", control_image=picture[:, ::2, ::2])
    refused(UNET.clone(extra_channels=1), r"takes image as \[8, 4, 4, 1\]", image=np.zeros((8, 2, 2, 1)))
    sizes = UNET.clone(pooled_channels=5, size_channels=4, num_sizes=6)
    refused(sizes, r"takes pooled as \[8, 9\], got \[8, 5\]", pooled=np.zeros((8, 5)), sizes=np.zeros((8, 5)))
    with pytest.raises(UserError, match="belong to different networks"):
        summed_controls([one, {**one, "down": ()}])
    with pytest.raises(UserError, match="the U-Net has no down_0_1"):
        controlnet_params(parameter_shapes(CONTROL.clone(num_res_blocks=2)), params)
    with pytest.raises(UserError, match="remat policy 'ful'"):
        UNET.clone(remat="ful")
