import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, UNet, count_parameters, example_inputs
from diffusion_jax.models.layers import upsample_nearest


def build(**fields):
    return MODELS.build({"name": "unet", **fields}, image_channels=3)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"image_size": 32}, 35_746_307),  # CIFAR-10
        ({"image_size": 256, "channel_multipliers": [1, 1, 2, 2, 4, 4]}, 113_673_219),  # LSUN, CelebA-HQ
        ({"image_size": 64, "channel_multipliers": [1, 2, 2, 2, 4]}, 78_700_803),  # CelebA, from the DDIM paper
        ({"image_size": 32, "num_classes": 10}, 35_746_307 + 11 * 4 * 128),
        ({"image_size": 32, "out_channels": 6}, 35_746_307 + 3 * (9 * 128 + 1)),
        ({"image_size": 64, "patch_size": 2}, 35_746_307 + 9 * 2 * 9 * 128 + 9),  # 12 channels instead of 3
    ],
)
def test_parameter_counts(fields, count):
    assert count_parameters(build(**fields)) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 28}, "is not divisible by 8"),
        ({"image_size": 8, "channel_multipliers": (1, 2)}, r"attention_resolutions=\(16,\).*\[4, 8\]"),
        ({"image_size": 40, "patch_size": 2}, "of 2x2 patches 3 times: image_size=40 is not divisible by 16"),
        ({"image_size": 32, "patch_size": 0}, "patch_size must be a whole number of at least 1 .*, it is 0"),
        ({"image_size": 32, "dropout": 1.0}, r"rate in \[0, 1\), got 1.0"),
        ({"image_size": 32, "downsample_padding": "valid"}, "'same' or 'symmetric'"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


def tiny(**fields):
    defaults = {"base_channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (4,), "num_res_blocks": 1}
    return UNet(**{"image_size": 8, "image_channels": 3, **defaults, **fields})


def output_shape(module, image_shape):
    inputs = example_inputs(module, 2, image_shape)
    return jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)[0].shape


def test_patches_are_the_channels_of_a_smaller_image():
    """A network with patch_size=2 equals one with 4 times the channels on images of half the size."""
    rng = np.random.default_rng(0)
    patched = tiny(image_channels=1, patch_size=2, attention_resolutions=(2,))
    plain = tiny(image_channels=4, image_size=4, attention_resolutions=(2,))
    x = jnp.asarray(rng.standard_normal((2, 8, 8, 1), np.float32))
    squares = x.reshape(2, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 4)
    time = jnp.asarray([0.1, 0.7])
    variables = plain.init(jax.random.key(0), squares, time, {})
    variables = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape, np.float32) * 0.3), variables)
    got = patched.apply(variables, x, time, {})
    expected = plain.apply(variables, squares, time, {})
    expected = expected.reshape(2, 4, 4, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 1)
    np.testing.assert_array_equal(got, expected)


def test_takes_other_sizes_that_divide():
    assert output_shape(tiny(), (16, 12, 3)) == (2, 16, 12, 3)
    assert output_shape(tiny(out_channels=6), (8, 8, 3)) == (2, 8, 8, 6)
    with pytest.raises(UserError, match="is not divisible by 2"):
        output_shape(tiny(), (8, 7, 3))


def test_heads_must_divide_channels():
    with pytest.raises(UserError, match="num_heads=3"):
        output_shape(tiny(num_heads=3), (8, 8, 3))
    assert count_parameters(tiny(num_heads=2)) == count_parameters(tiny())


@pytest.mark.parametrize(("padding", "first"), [("same", 0), ("symmetric", -1)])
def test_downsample_padding(padding, first):
    """Each output pixel of the stride-2 convolution reads rows first ... first + 2, relative to its pair of rows."""
    module = tiny(downsample_padding=padding)
    convs = []

    def record(next_method, args, kwargs, context):
        if context.module.name == "down_0_downsample" and context.method_name == "__call__":
            convs.append(context.module.clone())
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        output_shape(module, (8, 8, 3))
    conv = convs[0].clone(parent=None, features=1)
    kernel = jnp.ones((3, 3, 1, 1))
    rows = np.arange(8.0)[None, :, None, None] * np.ones((1, 8, 8, 1))
    seen = conv.apply({"params": {"kernel": kernel, "bias": jnp.zeros(1)}}, rows)[0, :, 1, 0] / 3
    expected = [sum(r for r in range(2 * i + first, 2 * i + first + 3) if 0 <= r < 8) for i in range(4)]
    np.testing.assert_allclose(seen, expected)


def test_upsample_is_nearest():
    x = np.arange(2 * 2 * 3 * 2.0).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))
