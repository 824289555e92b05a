"""Prior preservation: each half of a batch has its own weight, noise and time, for any split of the batch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import parallel
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.objectives.denoising import mean_square, prior_preserving
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Prediction

GOLDEN = Path(__file__).parents[1] / "golden" / "pipelines" / "losses" / "dreambooth_prior.npz"
WEIGHT = 0.3


def test_the_reference_gives_the_same_loss():
    arrays = np.load(GOLDEN)
    losses = mean_square(jnp.asarray(arrays["model_pred"] - arrays["target"], jnp.float32))
    prior = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])  # [instance; class]
    found = prior_preserving(losses, prior, float(arrays["prior_loss_weight"]))
    for name in ("loss", "instance_loss", "prior_loss"):
        np.testing.assert_allclose(found[name], arrays[name], rtol=1e-5)
    half = prior_preserving(losses, prior, 0.5)["loss"]
    np.testing.assert_allclose(half, arrays["instance_loss"] + 0.5 * arrays["prior_loss"], rtol=1e-5)


@pytest.mark.parametrize("order", ["turns", "halves"])
def test_any_split_of_the_batch_has_the_same_loss(order):
    losses = jnp.asarray(np.random.default_rng(0).uniform(size=8), jnp.float32)
    prior = jnp.asarray(np.tile([0.0, 1.0], 4) if order == "turns" else np.repeat([0.0, 1.0], 4))
    whole = prior_preserving(losses, prior, WEIGHT)["loss"]
    by_hand = losses[prior == 0].mean() + WEIGHT * losses[prior == 1].mean()
    np.testing.assert_allclose(whole, by_hand, rtol=1e-6)
    for rows in (slice(None, None, 2), slice(0, 4), slice(0, 1)):  # one whole half, parts of both, one example
        others = np.setdiff1d(np.arange(8), np.arange(8)[rows])
        parts = [prior_preserving(losses[i], prior[i], WEIGHT)["loss"] for i in (np.arange(8)[rows], others)]
        share = len(others) / 8
        np.testing.assert_allclose((1 - share) * parts[0] + share * parts[1], whole, rtol=1e-6)


def test_each_half_has_its_own_noise_and_time():
    """All examples of both halves have different noise and times."""
    objective = OBJECTIVES.build({"name": "denoising"}, time_sampler="uniform")
    seen = {}

    def denoise(xt, t):
        seen.update(xt=xt, t=t)
        return Prediction(x0=jnp.zeros_like(xt), noise=jnp.zeros_like(xt))

    batch = {"data": jnp.zeros((8, 2, 2, 1)), "prior": jnp.tile(jnp.array([0.0, 1.0]), 4)}
    _, metrics = objective.loss(denoise, batch, BatchKey.create(jax.random.key(0), 8))
    assert len(np.unique(seen["t"])) == 8
    assert len(np.unique(seen["xt"].sum(axis=(1, 2, 3)))) == 8
    assert {"loss", "instance_loss", "prior_loss", "mse", "x0_mse"} == set(metrics)
    np.testing.assert_allclose(metrics["mse"], (metrics["instance_loss"] + metrics["prior_loss"]) / 2, rtol=1e-6)


@pytest.mark.parametrize(("name", "accumulation"), [("jit", 1), ("jit", 2), ("pmap", 2)])
def test_the_update_is_that_of_one_device(make_trainable, make_step, batch, name, accumulation):
    """The gradient is the same if all class examples are on separate devices and in a separate microbatch."""
    trainable = make_trainable("mlp", features=8, depth=1)
    weighing = OBJECTIVES.build({"name": "flow_matching", "prior_loss_weight": WEIGHT})
    trainable = type(trainable)(model=trainable.model, objective=weighing)
    rows = {**batch(), "prior": np.tile(np.float32([0.0, 1.0]), 8)}

    def after(accumulation, spec=None):
        step, init = make_step(trainable, accumulation=accumulation)
        if spec is None:
            return jax.jit(step)(init(), rows)
        placed = parallel.LAYOUTS.build({"name": spec})
        state, metrics = placed.compile(step, jax.eval_shape(init))(placed.init(init), placed.place_batch(rows))
        return placed.to_canonical(state), placed.fetch(metrics)

    (expected, wanted), (found, metrics) = after(1), after(accumulation, name)
    for key in ("loss", "instance_loss", "prior_loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[key], wanted[key], rtol=2e-5)
    np.testing.assert_allclose(metrics["loss"], metrics["instance_loss"] + WEIGHT * metrics["prior_loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        jax.device_get(found.params),
        jax.device_get(expected.params),
    )
