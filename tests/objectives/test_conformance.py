"""Properties that every registered objective must have; a new objective is tested without a new test."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoders import to_tokens
from diffusion_jax.objectives import OBJECTIVES, Context, with_copies
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Parameterization
from tests.samplers.closed_form import Gaussian

CHAIN = {"name": "token_chain", "num_tokens": 4, "num_steps": 6}
UNIFORM = {"name": "tokens", "num_tokens": 4, "noise": "uniform"}
RECIPES = {
    "v": {"name": "denoising", "schedule": "cosine", "time_sampler": "uniform", "prediction": "v"},
    "min_snr": {"name": "denoising", "prediction": "v", "weighting": {"name": "min_snr", "gamma": 5.0}},
    "edm": {"name": "denoising", "schedule": "edm", "time_sampler": "log_normal", "prediction": "edm"},
    "edm2": {
        **{"name": "denoising", "schedule": "edm", "time_sampler": "log_normal", "prediction": "edm"},
        "uncertainty": True,
    },
    "importance": {"name": "denoising", "time_sampler": {"name": "loss_second_moment", "num_steps": 1000}},
    "sd3": {"name": "flow_matching", "time_sampler": {"name": "logit_normal", "uniforms": "low_discrepancy"}},
    "vdm_discrete": {"name": "vdm", "num_steps": 10, "bins": 16, "learned": True, "fixed_ends": True},
    "guided_meanflow": {"name": "meanflow", "omega": 0.5, "kappa": 0.25},
    "d3pm_uniform": {"name": "d3pm", "process": {**CHAIN, "kind": "uniform"}},
    "d3pm_absorbing": {"name": "d3pm", "process": {**CHAIN, "kind": "absorbing"}},
    "sedd_uniform": {"name": "sedd", "process": UNIFORM},
    "discrete_flow_uniform": {"name": "discrete_flow", "process": UNIFORM},
}
ALL = [*RECIPES, *OBJECTIVES]
SHAPE = (4, 4, 1)


def build(name):
    return OBJECTIVES.build(RECIPES[name]) if name in RECIPES else OBJECTIVES.example(name)


@pytest.fixture(params=ALL)
def objective(request):
    return build(request.param)


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def batch(objective, size=8, seed=0):
    """A batch of numbers in [-1, 1] or of tokens, as the objective requires."""
    values = np.clip(np.random.default_rng(seed).normal(0.3, 0.5, (size, *SHAPE)), -1, 1)
    values = jnp.asarray(values, jnp.float32)
    return {"data": to_tokens(values, objective.process.num_tokens) if objective.discrete else values}


def exact_denoiser(objective):
    """A finite denoiser of the right kind: token logits, or the flow map and denoiser of Gaussian data."""
    if objective.discrete:
        size = objective.process.num_tokens
        return lambda xt, t: jnp.sin(jnp.arange(size) + 0.3 * xt[..., None].astype(jnp.float32))
    return with_variance(Gaussian().flow_map(objective.schedule), Gaussian().denoiser(objective.schedule))


def with_variance(flow_map, denoiser):
    def denoise(xt, t, *s):
        prediction = flow_map(xt, t, *s) if s else denoiser(xt, t)
        return jax.tree.map(
            lambda x: x, type(prediction)(x0=prediction.x0, noise=prediction.noise, variance_fraction=0.5 + 0 * xt)
        )

    return denoise


def network_denoiser(objective, weight):
    """A parameterised network with one weight that supports all signatures."""
    if objective.discrete:
        process = objective.process
        process = dataclasses.replace(process, told="scaled_t")

        def network(x, time):
            waves = jnp.sin(weight * (jnp.arange(process.num_tokens) + 1.0) + time[:, None, None, None])
            return waves * (1 + x[..., :1])

        return process.denoiser(network)
    parameterization = Parameterization.build(
        schedule=objective.schedule, prediction=objective.prediction, time_input="t"
    )

    def network(x, time, second_time=0.0):
        out = jnp.tanh(weight * (x + (time + second_time)[:, None, None, None]))
        return jnp.concatenate([out, 0.5 * out], axis=-1)  # a variance head, which other objectives ignore

    return parameterization.denoiser(network)


def params_of(objective):
    """The objective's parameters, including its copies of a network with one weight."""
    return with_copies(objective, objective.init_params(jax.random.key(1)), jnp.float32(0.4))


def context_of(objective, denoiser, step=3):
    return Context(
        step=jnp.int32(step),
        target=denoiser,
        teacher=denoiser,
        unconditional=denoiser,
        aligned=lambda xt, t: (denoiser(xt, t), {"features": jnp.ones((len(xt), 4, 2))}),
        with_network=lambda network: denoiser,
        params=params_of(objective),
        state=objective.init_state(),
    )


def test_loss_and_metrics_are_finite_scalars(objective):
    denoiser = exact_denoiser(objective)
    context = context_of(objective, denoiser)
    loss, metrics = jax.jit(lambda image: objective.loss(denoiser, {"data": image}, keys(8), context))(
        batch(objective)["data"]
    )
    assert all(value.shape == () and np.isfinite(value) for value in (loss, *metrics.values()))
    assert loss == metrics["loss"]
    if not objective.discrete:
        assert "x0_mse" in metrics


def test_hashable(objective):
    assert hash(objective) == hash(objective)


def test_the_loss_is_the_mean_over_any_split_of_the_batch(objective, x64):
    denoiser, data = exact_denoiser(objective), batch(objective)["data"]
    context = context_of(objective, denoiser)

    @jax.jit
    def loss(image, index):
        return objective.loss(denoiser, {"data": image}, BatchKey(jax.random.key(0), index, 8), context)[0]

    whole = loss(data, jnp.arange(8))
    parts = [loss(data[i : i + 4], jnp.arange(i, i + 4)) for i in (0, 4)]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-6)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_gradients_through_a_parameterised_network_are_finite(objective, dtype):
    frozen = network_denoiser(objective, jnp.float32(0.2))

    def loss(weight, params):
        context = Context(
            step=jnp.int32(3),
            target=frozen,
            teacher=frozen,
            unconditional=frozen,
            aligned=lambda xt, t: (network_denoiser(objective, weight)(xt, t), {"features": jnp.ones((len(xt), 4, 2))}),
            with_network=lambda network: network_denoiser(objective, network),
            params=params,
            state=objective.init_state(),
        )
        return objective.loss(network_denoiser(objective, weight), batch(objective), keys(8), context)[0]

    params = params_of(objective)
    weight, own = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(0.3, dtype), params)
    assert np.isfinite(weight)
    assert weight != 0
    for leaf in jax.tree.leaves(own):
        assert np.all(np.isfinite(leaf))


def test_what_is_needed_is_asked_for(objective):
    if not objective.needs:
        return
    with pytest.raises(UserError, match="pass it in Context"):
        objective.loss(exact_denoiser(objective), batch(objective), keys(8))


def test_a_batch_without_data_is_one_clear_line(objective):
    denoiser = exact_denoiser(objective)
    with pytest.raises(UserError, match="needs batch"):
        objective.loss(denoiser, {"pixels": jnp.zeros((8, 1))}, keys(8), context_of(objective, denoiser))


def test_state_goes_on_with_what_was_observed(objective):
    state, denoiser = objective.init_state(), exact_denoiser(objective)
    if state is None:
        return
    context = context_of(objective, denoiser)
    run = jax.jit(lambda image: objective.loss_and_observed(denoiser, {"data": image}, keys(8), context))
    _, (_, observed) = run(batch(objective)["data"])
    assert all(value.shape == (8,) for value in observed.values())
    after = objective.update_state(state, observed)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True))
