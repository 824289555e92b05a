"""LPIPS and its weights, compared with the lpips package."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import init_lpips, lpips
from diffusion_jax.parallel.hlo import Program
from diffusion_jax.weights import lpips_shapes, read_lpips
from tests.lpips_weights import write_random_lpips

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "metrics" / "lpips.npz"


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    return read_lpips(*write_random_lpips(tmp_path_factory.mktemp("lpips")))


def test_the_number_of_parameters():
    shapes = lpips_shapes()
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    channels = sum(size for name, size in sizes.items() if name.startswith("weight"))
    assert channels == 64 + 128 + 256 + 512 + 512
    assert sum(sizes.values()) - channels == 14_714_688  # torchvision's vgg16().features


@pytest.mark.slow
def test_distances_and_gradients_are_those_of_the_package(params):
    golden = np.load(GOLDEN)
    found, gradient = jax.jit(jax.value_and_grad(lambda x: lpips(params, x, golden["y"]).sum()))(golden["x"])
    np.testing.assert_allclose(found, golden["distance"].sum(), rtol=1e-5)
    scale = np.abs(golden["gradient"]).max()
    np.testing.assert_allclose(gradient, golden["gradient"], atol=1e-3 * scale)
    np.testing.assert_allclose(lpips(params, golden["x"], golden["y"]), golden["distance"], rtol=1e-4)


def test_images_are_interpolated_as_torch_does_it(params):
    golden = np.load(GOLDEN)
    square = golden["x"][:, :, :32], golden["y"][:, :, :32]
    np.testing.assert_allclose(lpips(params, *square, size=64), golden["resized"], rtol=1e-4)


def test_a_distance_of_equal_images_is_zero_and_so_is_its_gradient(params):
    x = jnp.full((1, 16, 16, 3), -1.0)
    value, gradient = jax.value_and_grad(lambda x: lpips(params, x, x)[0])(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_pairs_on_several_devices_stay_where_they_are():
    layout = parallel.LAYOUTS.build({"name": "jit"})
    image = jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.float32, sharding=layout.batch_sharding)
    step = jax.jit(jax.grad(lambda x, y, params: lpips(params, x, y, size=32).sum()))
    program = Program(step.lower(image, image, lpips_shapes()).compile().as_text(), jax.device_count())
    assert jax.device_count() == 8
    assert program.collectives == {}


def test_one_channel_is_three_equal_ones(params):
    x, y = (np.load(GOLDEN)[name][..., :1] for name in "xy")
    three = lpips(params, *(np.repeat(image, 3, axis=-1) for image in (x, y)))
    np.testing.assert_allclose(lpips(params, x, y), three, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16, 2), (16, 8, 3)])
def test_images_that_can_not_be_compared(shape):
    images = jnp.zeros((1, *shape))
    with pytest.raises(UserError, match="one or three channels and at least 16x16 pixels"):
        lpips(init_lpips(jax.random.key(0)), images, images)


def test_missing_files_say_where_they_are_published(tmp_path):
    with pytest.raises(UserError, match=r"VGG-16.*download.pytorch.org/models/vgg16-397923af.pth"):
        read_lpips(tmp_path / "vgg.pth", tmp_path / "lpips.pth")
    vgg, _ = write_random_lpips(tmp_path)
    with pytest.raises(UserError, match=r"LPIPS.*PerceptualSimilarity.*SHA-256 a78928a0"):
        read_lpips(vgg, tmp_path / "lpips.pth")
    save_file({"lin0.model.1.weight": np.zeros((1, 64, 1, 1), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="missing"):
        read_lpips(vgg, tmp_path / "other.safetensors")
