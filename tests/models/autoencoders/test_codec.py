"""All registered codecs: the declared shape of latents, keys per example, export, and properties of each kind."""

import dataclasses
import functools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import (
    CODECS,
    KL,
    SCALE,
    SHIFT,
    VQ,
    StoredLatents,
    Values,
    from_tokens,
    to_tokens,
)
from diffusion_jax.models.autoencoders.stored import stored
from diffusion_jax.models.layers import depth_to_space, space_to_depth
from diffusion_jax.specs import DataSpec

PIXELS = DataSpec(kind="pixels", shape=(4, 4, 2))
LEARNED = [name for name in CODECS if CODECS[name].learned]


@pytest.fixture(params=list(CODECS))
def codec(request):
    return CODECS.example(request.param)


@pytest.fixture(params=LEARNED)
def learned(request):
    return CODECS.example(request.param)


def images(count=3):
    return np.random.default_rng(0).integers(0, 17, (count, *PIXELS.shape)).astype(np.float32) / 8 - 1


@functools.cache
def drawn_params(codec):
    """Parameters without zeros; fresh parameters have branches of zeros and a codebook close to zero."""
    if not codec.learned:
        return None
    params = jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size).reshape(p.shape)), codec.init_params(KEY))
    return codec.standardised(params, mean=jnp.arange(4.0) / 4, std=jnp.arange(1.0, 5.0) / 3)


KEY = jax.random.key(0)


def test_the_spec_is_true(codec):
    params, spec = drawn_params(codec), codec.spec(PIXELS)
    z = jax.jit(codec.encode)(params, images(), jax.random.split(KEY, 3))
    assert z.shape == (3, *spec.shape)
    assert z.dtype == spec.dtype
    x = jax.jit(codec.decode)(params, z)
    assert (x.shape, x.dtype) == ((3, *PIXELS.shape), np.float32)
    assert hash(codec) == hash(codec)
    assert (codec.init_params(KEY) is not None) == codec.learned


@pytest.mark.parametrize("name", [name for name in CODECS if name not in LEARNED])
def test_what_is_not_learned_decodes_what_it_encoded(name):
    codec = CODECS.example(name)
    np.testing.assert_allclose(codec.decode(None, codec.encode(None, images())), images(), atol=1e-6)


def test_without_keys_it_is_the_mean_and_with_them_a_draw(codec):
    params, x = drawn_params(codec), images()
    mean, std = codec.posterior(params, x)
    np.testing.assert_allclose(codec.encode(params, x), mean, atol=1e-6)
    many = jax.jit(jax.vmap(lambda key: codec.encode(params, x, jax.random.split(key, 3))))(jax.random.split(KEY, 2000))
    error = 5 * np.asarray(std) / math.sqrt(len(many))
    assert (np.abs(many.astype(jnp.float32).mean(0) - mean) <= error + 1e-4).all()
    np.testing.assert_allclose(many.astype(jnp.float32).std(0), std, rtol=0.2, atol=1e-5)


def test_an_example_depends_on_its_own_key_alone(codec):
    """Any split of a batch gives the same latents and pictures."""
    params, x, keys = drawn_params(codec), images(4), jax.random.split(KEY, 4)
    encode, decode = jax.jit(codec.encode), jax.jit(codec.decode)
    z = encode(params, x, keys)
    for rows in (slice(0, 1), slice(1, 4)):
        np.testing.assert_allclose(encode(params, x[rows], keys[rows]), z[rows], atol=1e-5)
        np.testing.assert_allclose(decode(params, z[rows]), decode(params, z)[rows], atol=1e-5)


def test_it_can_be_exported(codec):
    params, x = drawn_params(codec), images()
    z = codec.encode(params, x)
    for function, value in ((lambda p, x: codec.encode(p, x), x), (codec.decode, z)):
        shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(np.shape(v), np.asarray(v).dtype), (params, value))
        exported = jax.export.export(jax.jit(function))(*shapes)
        np.testing.assert_allclose(exported.call(params, value), function(params, value), atol=1e-5)


def test_latents_are_standardised(learned):
    """Standardised latents have mean 0 and variance 1, and decode to the same pictures as before."""
    raw = {**drawn_params(learned), SHIFT: jnp.zeros(4), SCALE: jnp.ones(4)}
    mean, std = learned.posterior(raw, images())
    centre, width = mean.mean((0, 1, 2)), jnp.sqrt((mean**2 + std**2).mean((0, 1, 2)) - mean.mean((0, 1, 2)) ** 2)
    params = learned.standardised(raw, centre, width)
    mean, std = learned.posterior(params, images())
    np.testing.assert_allclose(mean.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose((mean**2 + std**2).mean((0, 1, 2)), 1, rtol=1e-3)
    x = learned.decode(params, learned.encode(params, images()))
    np.testing.assert_allclose(x, learned.decode(raw, learned.encode(raw, images())), atol=1e-4)
    with pytest.raises(UserError, match="channels 1 of the latents are constant"):
        learned.standardised(raw, centre, jnp.array([1.0, 0.0, 1.0, 1.0]))


def test_pictures_that_do_not_fit_are_refused(learned):
    with pytest.raises(UserError, match=r"takes 2 channels, but the data has 3"):
        learned.spec(DataSpec(kind="pixels", shape=(4, 4, 3)))
    with pytest.raises(UserError, match=r"2 times shorter, but 5x4 is not divisible"):
        learned.spec(DataSpec(kind="pixels", shape=(5, 4, 2)))
    with pytest.raises(UserError, match="needs pixels, but the data is tokens"):
        learned.spec(DataSpec(kind="tokens", shape=(4,)))
    with pytest.raises(UserError, match="did you mean 'small_f4'"):
        type(learned)(size="smal_f4")


@pytest.mark.parametrize(
    ("codec", "count"),
    [
        (KL(size="f8"), 83_653_863),  # Stable Diffusion
        (VQ(size="f4", latent_channels=3), 55_322_782),  # latent diffusion, 55.3 M in the paper
    ],
    ids=lambda value: getattr(value, "size", ""),
)
def test_parameters_are_as_many_as_the_published_models_have(codec, count):
    shapes = jax.eval_shape(codec.init_params, KEY)
    constants = 2 * codec.latent_channels  # shift and scale
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) - constants == count


def test_the_divergence_is_that_of_gaussians():
    """The KL penalty equals the closed form for the encoder's mean and variance, in float64."""
    codec = CODECS.example("kl")
    params = drawn_params(codec)
    made = codec.autoencode(params, images(), None)
    mean, log_variance = jnp.split(codec.encoder.apply({"params": params["encoder"]}, images()), 2, axis=-1)
    m, v = np.asarray(mean, np.float64), np.exp(np.asarray(log_variance, np.float64))
    kl = 0.5 * (m**2 + v - 1 - np.log(v)).sum((1, 2, 3)) / math.prod(PIXELS.shape)
    np.testing.assert_allclose(made.penalty, kl, rtol=1e-5)
    np.testing.assert_allclose(made.observed["kl"], kl.mean(), rtol=1e-5)


def test_the_table_of_a_quantised_one():
    """Latents snap to the nearest codebook row; the encoder gets a straight-through gradient, the codebook only the
    penalty's."""
    codec = CODECS.example("vq")
    params = drawn_params(codec)
    h = jax.random.normal(KEY, (2, 2, 2, 4))
    rows = np.asarray(params["codebook"])
    nearest = ((np.asarray(h)[..., None, :] - rows) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(codec.nearest(params, h), nearest)

    unscaled = {**params, SHIFT: jnp.zeros(4), SCALE: jnp.ones(4)}
    np.testing.assert_array_equal(codec.decode(unscaled, h), codec.decode(unscaled, rows[nearest]))

    def picture(params):
        return jnp.sum(jnp.sin(codec.autoencode(params, images(), None).x))

    def penalty(params):
        return jnp.sum(codec.autoencode(params, images(), None).penalty)

    size = {name: jax.tree.map(jnp.shape, params[name]) for name in params}
    of_picture, of_penalty = jax.jit(lambda params: (jax.grad(picture)(params), jax.grad(penalty)(params)))(params)
    assert size == {name: jax.tree.map(jnp.shape, of_picture[name]) for name in of_picture}
    norm = {name: float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(of_picture[name]))) for name in of_picture}
    assert norm["encoder"] > 0, "straight through"
    assert norm["codebook"] == 0, "the picture does not move the table"
    assert float(jnp.abs(of_penalty["codebook"]).sum()) > 0
    used = float(codec.autoencode(params, images(), None).observed["codes_used"])
    assert 1 <= used <= 12


@pytest.mark.parametrize("kind", [KL, VQ])
def test_patches_are_the_channels_of_a_smaller_picture(kind):
    patched = kind(size="small_f2", channels=(8,), num_res_blocks=1, data_channels=2, patch_size=2)
    plain = dataclasses.replace(patched, data_channels=8, patch_size=1)
    params, x = drawn_params(patched), images()
    assert (patched.factor, patched.spec(PIXELS).shape) == (2, (2, 2, 4))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, drawn_params(plain))
    z = patched.encode(params, x)
    np.testing.assert_array_equal(z, plain.encode(params, space_to_depth(x, 2)))
    np.testing.assert_array_equal(patched.decode(params, z), depth_to_space(plain.decode(params, z), 2))
    made = patched.autoencode(params, x, None)
    last = patched.last_layer(params["decoder"]["conv_out"]["kernel"], params, made.hidden)
    np.testing.assert_allclose(last, made.x, atol=1e-6)
    with pytest.raises(UserError, match="4 times shorter, but 6x6 is not divisible"):
        dataclasses.replace(patched, patch_size=4).spec(DataSpec(kind="pixels", shape=(6, 6, 2)))


def test_a_shortcut_adds_a_linear_map_and_its_transpose_at_first():
    straight = KL(size="small_f2", channels=(8, 8), data_channels=2, shortcut=True)
    winding = dataclasses.replace(straight, shortcut=False)
    params, x = straight.init_params(KEY), images()
    maps, rest = params["shortcut"], {name: value for name, value in params.items() if name != "shortcut"}
    np.testing.assert_allclose(maps["encoder"].T @ maps["encoder"], np.eye(4), atol=1e-6)
    np.testing.assert_array_equal(maps["decoder"], maps["encoder"].T)
    (z, std), (without, same) = straight.posterior(params, x), winding.posterior(rest, x)
    np.testing.assert_allclose(z - without, space_to_depth(x, 2) @ maps["encoder"], atol=1e-5)
    np.testing.assert_array_equal(std, same)
    back = straight.decode(params, z) - winding.decode(rest, z)
    np.testing.assert_allclose(back, depth_to_space(z @ maps["decoder"], 2), atol=1e-5)


@pytest.mark.parametrize("kind", [KL, VQ])
def test_whitened_latents_have_unit_covariance_and_decode_to_the_same(kind):
    plain = kind(size="small_f2", channels=(8,), num_res_blocks=1, data_channels=2)
    whitened = dataclasses.replace(plain, whiten=True)
    params, x = plain.init_params(KEY), images(64)
    raw = np.asarray(plain.encode(params, x), np.float64).reshape(-1, 4)
    rest = whitened.init_params(KEY)
    assert jax.tree.map(jnp.shape, rest.pop("frozen_basis")) == (4, 4)
    given = {**rest, "frozen_basis": jnp.eye(4)}
    done = whitened.standardised(given, raw.mean(0), raw.std(0), np.cov(raw.T, bias=True))
    z = np.asarray(whitened.encode(done, x)).reshape(-1, 4)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(4), atol=1e-3)
    np.testing.assert_allclose(
        whitened.decode(done, whitened.encode(done, x)), plain.decode(params, plain.encode(params, x)), atol=1e-4
    )
    with pytest.raises(UserError, match="need the covariance"):
        whitened.standardised(given, raw.mean(0), raw.std(0))
    with pytest.raises(UserError, match="a direction of the latents is constant"):
        whitened.standardised(given, raw.mean(0), raw.std(0), np.ones((4, 4)))


def test_stored_latents_are_those_of_the_first_stage(learned):
    params, x, keys = drawn_params(learned), images(), jax.random.split(KEY, 3)
    codec = StoredLatents(first_stage=learned)
    kept = stored(*learned.posterior(params, x))
    spec = codec.spec(DataSpec(kind="latents", shape=kept.shape[1:]))
    assert spec == learned.spec(PIXELS)
    np.testing.assert_allclose(codec.encode(params, kept, keys), learned.encode(params, x, keys), atol=1e-6)
    np.testing.assert_allclose(codec.encode(params, kept), learned.encode(params, x), atol=1e-6)
    np.testing.assert_array_equal(codec.decode(params, kept[..., :4]), learned.decode(params, kept[..., :4]))
    with pytest.raises(UserError, match=r"have 8 channels, mean and spread; the data is latents \[2, 2, 6\]"):
        codec.spec(DataSpec(kind="latents", shape=(2, 2, 6)))


def test_pixels_as_tokens_and_back():
    tokens = jnp.arange(17)
    np.testing.assert_array_equal(to_tokens(from_tokens(tokens, 17), 17), tokens)
    np.testing.assert_allclose(from_tokens(jnp.array([0, 16]), 17), [-1, 1])
    np.testing.assert_array_equal(Values(num_values=17).decode(None, jnp.array([17, 16])), [0, 1])


def test_only_pixels_have_values():
    with pytest.raises(UserError, match="latents: use identity"):
        Values(num_values=4).spec(DataSpec(kind="latents", shape=(4, 4, 2)))


def test_fields_are_held_against_their_bounds():
    with pytest.raises(UserError, match="num_codes must be"):
        CODECS.build({"name": "vq", "num_codes": 1})
    with pytest.raises(UserError, match="latent_channels must be"):
        CODECS.build({"name": "kl", "latent_channels": 0})
    with pytest.raises(UserError, match="channels must be a tuple"):
        CODECS.build({"name": "kl", "channels": 3})
