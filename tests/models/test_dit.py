import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.counter_prng import counter_key
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, count_parameters, example_inputs, init_params
from diffusion_jax.models.dit import patchify, unpatchify
from diffusion_jax.models.dit_blocks import DiTBlock
from diffusion_jax.models.positions import position_embedding, sine_embedding, spread_positions

IMAGENET = {"image_size": 32, "image_channels": 4, "num_classes": 1000}


def build(**fields):
    return MODELS.build({"name": "dit", "learn_sigma": True, **fields}, **IMAGENET)


COUNTS = {
    "S/2": 32_865_056,
    "S/4": 32_920_448,
    "S/8": 33_142_016,
    "B/2": 130_315_808,
    "B/4": 130_426_496,
    "B/8": 130_869_248,
    "L/2": 457_840_672,
    "L/4": 457_988_224,
    "L/8": 458_578_432,
    "XL/2": 674_834_720,
    "XL/4": 675_000_704,
    "XL/8": 675_664_640,
}


@pytest.mark.parametrize(("size", "count"), COUNTS.items())
def test_parameter_counts(size, count):
    assert count_parameters(build(size=size)) == count


def test_parameter_counts_of_the_parts():
    shapes = jax.eval_shape(lambda: init_params(build(size="XL/2"), jax.random.key(0)))

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert count(shapes["patch_embedding"]) == 19_584
    assert count(shapes["conditioning"]["time"]) == 1_624_320
    assert count(shapes["conditioning"]["label"]) == 1_153_152
    assert count(shapes["blocks"]) == 28 * 23_905_152
    assert count(shapes["final"]) == 2_693_408


@pytest.mark.parametrize(("size", "gigamacs"), [("S/2", 6.056), ("XL/2", 118.62)])
def test_multiply_adds(size, gigamacs):
    """The multiply-adds equal a closed form of the paper's Gflops column, and XLA's count with unrolled blocks."""
    module = build(size=size)
    dim, tokens, patch = module.hidden_size, (32 // module.patch_size) ** 2, module.patch_size**2
    blocks = module.depth * (12 * dim**2 * tokens + 2 * tokens**2 * dim + 6 * dim**2)
    embeddings = 256 * dim + dim**2 + tokens * dim * patch * (4 + 8) + 2 * dim**2
    assert blocks + embeddings == pytest.approx(gigamacs * 1e9, rel=1e-3)

    module = module.clone(scan_unroll=module.depth)
    params = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    cost = jax.jit(module.apply).lower({"params": params}, *example_inputs(module)).cost_analysis()
    assert cost["flops"] / 2 == pytest.approx(blocks + embeddings, rel=0.01)


def test_position_embedding_order():
    """Tokens run row by row; each embedding has the column, then the row; each of these has sines, then cosines."""
    size, dim = 8, 16
    embedding = position_embedding(size, dim)
    assert embedding.shape == (size * size, dim)
    for row, column in np.ndindex(size, size):
        expected = []
        for position in (column, row):
            angles = [position / 10_000 ** (i / (dim / 4)) for i in range(dim // 4)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(embedding[row * size + column], expected, atol=1e-12)


def test_patches_are_row_column_channel():
    x = np.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    tokens = patchify(jnp.asarray(x), 2)
    np.testing.assert_array_equal(tokens[1, 1], x[1, :2, 2:].reshape(-1))
    np.testing.assert_array_equal(tokens[1, 2], x[1, 2:, :2].reshape(-1))
    np.testing.assert_array_equal(unpatchify(tokens, 2, 4), x)


def test_block_starts_as_the_identity():
    block = DiTBlock(num_heads=2, mlp_ratio=4.0, norm_eps=1e-6, dtype=jnp.float32)
    x, vector = np.random.default_rng(0).standard_normal((2, 4, 8), np.float32), jnp.ones((2, 8))
    output, _ = jax.jit(lambda key: block.init_with_output(counter_key(key), x, vector)[0])(jax.random.key(1))
    np.testing.assert_array_equal(output, x)


@pytest.fixture(scope="module")
def tiny():
    module = MODELS.example("dit")
    params = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    draw = np.random.default_rng(0)
    return module, jax.tree.map(lambda p: np.float32(0.3 * draw.standard_normal(p.shape)), params)


def test_initialisation(tiny):
    params = init_params(tiny[0].clone(hidden_size=64), jax.random.key(0))
    qkv = params["blocks"]["qkv"]["kernel"]
    assert float(jnp.abs(qkv).max()) == pytest.approx(math.sqrt(6 / (64 + 192)), rel=1e-2)  # Glorot, uniform
    assert float(qkv.std()) == pytest.approx(math.sqrt(2 / (64 + 192)), rel=0.03)
    assert float(jnp.abs(qkv[0] - qkv[1]).max()) > 0.1  # layers differ
    assert float(params["conditioning"]["label"]["embedding"].std()) == pytest.approx(0.02, rel=0.2)
    assert float(params["conditioning"]["time"]["dense_0"]["kernel"].std()) == pytest.approx(0.02, rel=0.05)
    for zero in (params["blocks"]["modulation"], params["final"]):
        assert all(not leaf.any() for leaf in jax.tree.leaves(zero))


def test_remat_and_unroll_change_nothing(tiny, x64):
    module, params = tiny[0].clone(dtype=jnp.float64), jax.tree.map(np.float64, tiny[1])
    x, _, conditioning = example_inputs(module, 2)
    inputs = (x + 1.0, jnp.asarray([0.5, 2.0]), conditioning)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(module, params):
        return jax.grad(lambda p: jnp.mean(module.apply({"params": p}, *inputs) ** 2))(params)

    expected, actual = gradient(module, params), gradient(module.clone(remat="full", scan_unroll=2), params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10), actual, expected)


def test_remat_recomputes(tiny):
    """The residuals of the backward pass shrink with "dots" and most with "full"."""
    module, params = tiny

    def residuals(remat):
        clone = module.clone(remat=remat)
        _, vjp = jax.eval_shape(
            lambda p: jax.vjp(lambda p: clone.apply({"params": p}, *example_inputs(clone, 8)), p), params
        )
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(vjp))

    assert residuals("full") < residuals("dots") < residuals("none")


def test_sizes():
    module = build(size="B/4", depth=3)
    assert (module.hidden_size, module.num_heads, module.patch_size, module.depth) == (768, 12, 4, 3)
    assert build().patch_size == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "XXL/2"}, "did you mean 'XL/2'"),
        ({"size": "S"}, "unknown DiT size 'S'"),
        ({"size": "S/0"}, "unknown DiT size"),
        ({"size": "S/2", "patch_size": 5}, "is not divisible by patch_size=5"),
        ({"size": "S/2", "num_heads": 7}, "must be divisible by num_heads=7"),
        ({"size": "S/2", "remat": "dot"}, "did you mean 'dots'"),
        ({"siz": "S/2"}, "did you mean 'size'"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


def applied(module, x, scale=0.3, **told):
    """The output for random parameters and only the given conditions."""
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: np.float32(scale * draw.standard_normal(p.shape)), shapes)
    _, time, conditions = example_inputs(module, len(x))
    return np.asarray(jax.jit(module.apply)({"params": params}, x, time + 0.3, {**conditions, **told}))


def test_positions_of_other_sizes_are_on_the_scale_of_the_training():
    np.testing.assert_array_equal(sine_embedding(spread_positions(8, 8, 8), 16), position_embedding(8, 16))
    large = spread_positions(32, 32, 8)
    np.testing.assert_allclose(large.mean(0), [3.5, 3.5])
    assert large.min() > -0.5
    assert large.max() < 7.5
    wide = spread_positions(4, 16, 8).reshape(4, 16, 2)  # as many tokens as in training, at the same distances
    np.testing.assert_allclose(np.diff(wide[..., 0], axis=0), 1.0)
    np.testing.assert_allclose(np.diff(wide[..., 1], axis=1), 1.0)
    np.testing.assert_allclose(wide.mean((0, 1)), [3.5, 3.5])


@pytest.mark.parametrize(("context_by", "positions"), [("cross", "sine"), ("joint", "rotary")])
def test_pictures_of_other_sizes(tiny, context_by, positions):
    """With text, the output has the size of the input at other sizes, and attention implementations agree."""
    x = np.random.default_rng(1).standard_normal((2, 8, 12, 2), np.float32)
    module = tiny[0].clone(depth=1, context_channels=5, context_by=context_by, positions=positions)
    spread = applied(module, x)
    assert spread.shape == x.shape
    assert np.abs(spread - applied(module.clone(other_sizes="continued"), x)).max() > 1e-3
    np.testing.assert_allclose(applied(module.clone(attention="chunked"), x), spread, atol=1e-5)


def test_rotary_positions_are_relative(tiny):
    """Equal patches give equal outputs; otherwise the order of the patches matters."""
    module = tiny[0].clone(positions="rotary")
    same = applied(module, np.ones((1, 8, 8, 2), np.float32))
    np.testing.assert_allclose(same, np.broadcast_to(np.tile(same[:, :2, :2], (1, 4, 4, 1)), same.shape), atol=1e-5)
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 2), np.float32)
    rows = [2, 3, 4, 5, 6, 7, 0, 1]
    assert np.abs(applied(module, x[:, rows]) - applied(module, x)[:, rows]).max() > 1e-3


def test_sizes_are_told(tiny):
    module = tiny[0].clone(size_channels=8)
    assert module.takes["sizes"].role == "told"
    x = np.ones((1, 4, 4, 2), np.float32)
    told = [np.float32([[4, 4, 0, 0, 4, side]]) for side in (4, 8)]
    assert np.abs(applied(module, x, sizes=told[0]) - applied(module, x, sizes=told[1])).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (6, 7, 2), "6x7 is not divisible by patch_size=2"),
        ({"num_heads": 8, "positions": "rotary"}, (4, 4, 2), "must be a multiple of 4 each"),
        ({"own_conditioning": True, "positions": "rotary"}, (4, 4, 2), "positions to sine"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, fields, shape, message):
    with pytest.raises(UserError, match=message) as error:
        applied(tiny[0].clone(**fields), np.zeros((1, *shape), np.float32))
    assert "\n" not in str(error.value)
