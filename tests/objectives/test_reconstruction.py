"""The loss of a first stage: its equations, the parameters that each term updates, and refused settings."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import init_lpips, lpips
from diffusion_jax.models.autoencoders import CODECS
from diffusion_jax.objectives import RECONSTRUCTIONS, ReconstructionLoss

X = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 2)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), 4)
GAN = ReconstructionLoss(adversarial=0.5, adversarial_start=3, discriminator_depth=1, discriminator_channels=8)


@functools.cache
def codec_and_params(name="kl"):
    codec = CODECS.example(name)
    params = codec.init_params(jax.random.key(0))
    return codec, jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size).reshape(p.shape)), params)


@functools.cache
def discriminator():
    return GAN.init_params(jax.random.key(2), X.shape[1:])


@functools.cache
def compiled(objective, name="kl"):
    """A function that returns (loss, metrics) and the gradients of codec and discriminator."""
    codec, _ = codec_and_params(name)

    def loss(params, critic, x, step):
        return objective.loss(codec, params, critic, x, KEYS, step=step)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def norm(tree):
    return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_it_is_its_equation(name):
    codec, params = codec_and_params(name)
    objective = ReconstructionLoss(l1=0.7, l2=0.3, penalty_weight=0.01)
    (loss, metrics), _ = compiled(objective, name)(params, None, X, 0)
    made = codec.autoencode(params, X, KEYS)
    y, penalty = np.asarray(made.x, np.float64), np.asarray(made.penalty, np.float64)
    expected = 0.7 * np.abs(X - y).mean() + 0.3 * ((X - y) ** 2).mean() + 0.01 * penalty.mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_the_adversarial_weight_is_the_ratio_of_the_gradients_at_the_last_layer():
    """Equation (4) holds, compared with gradients through the whole codec."""
    codec, params = codec_and_params()
    (_, metrics), _ = compiled(GAN)(params, discriminator(), X, 3)

    def decoded(kernel):
        conv_out = {**params["decoder"]["conv_out"], "kernel": kernel}
        changed = {**params, "decoder": {**params["decoder"], "conv_out": conv_out}}
        return codec.autoencode(changed, X, KEYS).x

    def distortion(kernel):
        return jnp.mean(jnp.abs(X - decoded(kernel)))

    def fooling(kernel):
        return -jnp.mean(GAN.discriminator.apply({"params": discriminator()}, decoded(kernel)))

    kernel = params["decoder"]["conv_out"]["kernel"]
    first, second = (jnp.linalg.norm(jax.jit(jax.grad(f))(kernel).ravel()) for f in (distortion, fooling))
    np.testing.assert_allclose(metrics["adversarial_weight"], 0.5 * first / (second + 1e-4), rtol=1e-3)
    np.testing.assert_allclose(metrics["fooling"], fooling(kernel), rtol=1e-4)


def test_each_network_is_moved_by_its_own_loss_alone():
    """The discriminator gets the gradient of the hinge loss; the codec that of distortion, penalty and -D(y)."""
    codec, params = codec_and_params()
    (_, metrics), (of_codec, of_critic) = compiled(GAN)(params, discriminator(), X, 3)
    y = codec.autoencode(params, X, KEYS).x

    def hinge(critic):
        real, fake = (GAN.discriminator.apply({"params": critic}, v) for v in (X, y))
        return 0.5 * jnp.mean(jax.nn.relu(1 - real)) + 0.5 * jnp.mean(jax.nn.relu(1 + fake))

    def codecs(params):
        made = codec.autoencode(params, X, KEYS)
        fooling = -jnp.mean(GAN.discriminator.apply({"params": discriminator()}, made.x))
        plain = jnp.mean(jnp.abs(X - made.x)) + 1e-6 * jnp.mean(made.penalty)
        return plain + metrics["adversarial_weight"] * fooling

    expected = jax.jit(jax.grad(hinge))(discriminator()), jax.jit(jax.grad(codecs))(params)
    for found, wanted in ((of_critic, expected[0]), (of_codec, expected[1])):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), found, wanted)
    assert norm(of_critic) > 0


def test_before_its_start_the_discriminator_counts_for_nothing():
    _, params = codec_and_params()
    (loss, metrics), (of_codec, of_critic) = compiled(GAN)(params, discriminator(), X, 2)
    (plain, _), (expected, _) = compiled(ReconstructionLoss())(params, None, X, 2)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), of_codec, expected)
    assert norm(of_critic) == 0
    assert float(metrics["adversarial_weight"]) == 0


def test_the_discriminator_judges_every_picture_by_itself():
    """The logits of a picture, one per patch, do not depend on other pictures."""
    apply = functools.partial(GAN.discriminator.apply, {"params": discriminator()})
    np.testing.assert_allclose(apply(X)[1:2], apply(X[1:2]), atol=1e-5)
    assert apply(X).shape == (4, 2, 2, 1)


def test_lpips_is_added_with_the_weights_it_is_given():
    objective = ReconstructionLoss(l1=1.0, perceptual=0.5)
    frozen = objective.init_state()
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, init_lpips(jax.random.key(0)))
    rng = np.random.default_rng(1)
    x, y = (rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32) for _ in range(2))
    total, terms = jax.jit(objective.distortion)(x, y, frozen)
    wanted = float(jnp.mean(lpips(frozen, x, y)))
    assert wanted > 0
    np.testing.assert_allclose(terms["lpips"], wanted, rtol=1e-5)
    np.testing.assert_allclose(total, np.abs(x - y).mean() + 0.5 * wanted, rtol=1e-5)
    assert objective.reads_lpips
    assert not ReconstructionLoss().reads_lpips
    assert ReconstructionLoss().init_state() is None


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="gives no difference a weight: set l1, l2 or perceptual"):
        RECONSTRUCTIONS.build({"name": "reconstruction", "l1": 0.0})
    with pytest.raises(UserError, match=r"needs 24x24 pixels, but the data has 8x8: set objective.discriminator_depth"):
        ReconstructionLoss(adversarial=1.0).check((8, 8, 1))
    with pytest.raises(UserError, match=r"LPIPS needs 16x16 pixels or more.*objective.perceptual=0"):
        ReconstructionLoss(perceptual=1.0).check((8, 8, 1))
    for name, value in itertools.product(("l1", "adversarial", "penalty_weight"), (-1.0, float("nan"))):
        with pytest.raises(UserError, match=f"{name} must be a number of at least 0"):
            RECONSTRUCTIONS.build({"name": "reconstruction", name: value})
