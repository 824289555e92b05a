"""Learning-rate schedules, gradient clipping, and names."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training import OPTIMIZERS, learning_rate_schedule, make_optimizer


def test_warmup_then_constant():
    rate = learning_rate_schedule(2e-4, decay="constant", warmup_steps=4, total_steps=100)
    np.testing.assert_allclose([rate(n) for n in range(6)], np.array([0.25, 0.5, 0.75, 1, 1, 1]) * 2e-4, rtol=1e-6)


def test_linear_decay_reaches_zero_at_the_end():
    rate = learning_rate_schedule(2.0, decay="linear", warmup_steps=0, total_steps=100)
    np.testing.assert_allclose([rate(0), rate(25), rate(100)], [2.0, 1.5, 0.0])


def test_warmup_then_cosine_to_zero():
    rate = learning_rate_schedule(1.0, decay="cosine", warmup_steps=10, total_steps=110)
    np.testing.assert_allclose([rate(9), rate(10), rate(60), rate(110)], [1, 1, 0.5, 0], atol=1e-6)


def test_inverse_square_root_is_edm2s():
    """EDM2-S: reference rate .01, 70,000 steps, ramp of 10 Mimg at batch 2048, with a published table of values."""
    rate = learning_rate_schedule(
        0.01, decay="inverse_sqrt", decay_steps=70_000, warmup_steps=round(10e6 / 2048), total_steps=2**20
    )
    images = np.array([5e6, 10e6, 143.36e6, 573.44e6, 2147.48e6])
    found = [float(rate(round(n / 2048))) for n in images]
    np.testing.assert_allclose(found, [0.005, 0.01, 0.01, 0.005, 0.00258374], rtol=3e-4)
    np.testing.assert_allclose(found[1:], [0.01, 0.01, 0.005, 0.00258374], atol=5e-9, rtol=1e-6)
    with pytest.raises(UserError, match="decay_steps"):
        learning_rate_schedule(0.01, decay="inverse_sqrt", warmup_steps=0, total_steps=10)


def test_no_warmup_begins_at_the_peak():
    assert learning_rate_schedule(0.1, decay="constant", warmup_steps=0, total_steps=10)(0) == pytest.approx(0.1)


def test_gradient_is_clipped_to_the_global_norm():
    optimizer = make_optimizer({"name": "sgd"}, learning_rate=lambda step: 1.0, clip_norm=1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    update, _ = optimizer.update(
        {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}, optimizer.init(params), params
    )
    np.testing.assert_allclose(update["a"], [-0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(update["b"], [0, -0.8], rtol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_descends(name):
    optimizer = make_optimizer({"name": name}, learning_rate=lambda step: 0.05)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    for _ in range(200):
        update, state = optimizer.update(2 * params, state, params)
        params = params + update
    assert float(jnp.abs(params).max()) < 0.5


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="unknown optimizer 'adma'; did you mean 'adam'"):
        make_optimizer({"name": "adma"}, learning_rate=lambda step: 1.0)
    with pytest.raises(
        UserError, match="unknown argument of optimizer 'adam' 'beta1'; known: b1, b2, eps, learning_rate"
    ):
        make_optimizer({"name": "adam", "beta1": 0.5}, learning_rate=lambda step: 1.0)
    with pytest.raises(UserError, match="unknown learning-rate schedule 'polynomial'"):
        learning_rate_schedule(1.0, decay="polynomial", warmup_steps=0, total_steps=1)


def _muon(params, gradient, **options):
    """The first update of Muon with the learning rate 0.01."""
    optimizer = make_optimizer({"name": "muon", **options}, learning_rate=lambda step: 0.01)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def _random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_muon_moves_a_kernel_by_an_orthogonal_matrix(shape):
    """Newton-Schulz' five steps bring all singular values near 1, and the left and right vectors stay the gradient's;
    the root mean square is 0.2 times the learning rate."""
    gradient = _random(*shape)
    update = np.asarray(_muon({"kernel": gradient}, {"kernel": gradient})["kernel"], np.float64)
    left, _, right = np.linalg.svd(np.asarray(gradient, np.float64), full_matrices=False)
    direction = -update / (0.01 * 0.2 * np.sqrt(max(shape)))
    singular = left.T @ direction @ right.T
    assert np.diag(singular).min() > 0.5
    assert np.diag(singular).max() < 1.3
    np.testing.assert_allclose(singular - np.diag(np.diag(singular)), 0, atol=2e-3)
    assert np.sqrt(np.mean(update**2)) == pytest.approx(0.002, rel=0.2)


def test_muon_knows_no_scale_of_the_gradient():
    gradient = _random(16, 24)
    once, more = (_muon({"kernel": gradient}, {"kernel": factor * gradient})["kernel"] for factor in (1.0, 1000.0))
    np.testing.assert_allclose(once, more, rtol=1e-3, atol=1e-7)


def test_muon_sees_a_convolution_as_one_matrix_and_every_layer_as_its_own():
    conv, stack = _random(3, 3, 4, 12), _random(2, 8, 12)
    flat = conv.reshape(36, 12)
    np.testing.assert_allclose(
        _muon({"kernel": conv}, {"kernel": conv})["kernel"].reshape(36, 12),
        _muon({"kernel": flat}, {"kernel": flat})["kernel"],
        rtol=1e-4,
        atol=1e-7,
    )
    both = _muon({"kernel": stack}, {"kernel": stack})["kernel"]
    for layer in range(2):
        alone = _muon({"kernel": stack[layer]}, {"kernel": stack[layer]})["kernel"]
        np.testing.assert_allclose(both[layer], alone, rtol=1e-4, atol=1e-7)


def test_muon_leaves_all_but_kernels_to_adam():
    """With Nesterov momentum; weight decay reaches all parameters."""
    params = {"embedding": _random(10, 6), "bias": _random(6), "kernel": _random(6, 6)}
    update = _muon(params, params)
    adam = optax.nadamw(0.01, b1=0.9, b2=0.99, weight_decay=0.0)
    expected = adam.update(params, adam.init(params), params)[0]
    for name in ("embedding", "bias"):
        np.testing.assert_allclose(update[name], expected[name], rtol=1e-6)
    assert np.abs(update["kernel"] - expected["kernel"]).min() > 1e-3
    decayed = _muon(params, params, weight_decay=0.5)
    for name, value in params.items():
        np.testing.assert_allclose(decayed[name] - update[name], -0.01 * 0.5 * value, atol=1e-6)
