"""Losses of few-step networks: curricula, exact minima, and identities from the papers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import lpips
from diffusion_jax.objectives import OBJECTIVES, Context
from diffusion_jax.objectives.curriculum import Discretisation, EasyCurriculum
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import GRIDS, PREDICTIONS, SCHEDULES, Prediction, corrupt
from tests.samplers.closed_form import Gaussian, point_mass_denoiser

EDM, FLOW = SCHEDULES.build("edm"), SCHEDULES.build("rectified_flow")
X0 = jnp.full((16, 2), 0.7)


def keys(size=16, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def gaussian_batch(size):
    return {"data": 0.3 + 0.5 * jax.random.normal(jax.random.key(3), (size, 2))}


def loss_of(objective, denoiser, batch, size=16, context=None):
    """The compiled loss and its metrics."""
    context = dataclasses.replace(context or Context(), params=objective.init_params(jax.random.key(0)))
    return jax.jit(lambda batch: objective.loss(denoiser, batch, keys(size), context))(batch)


def test_ict_discretisation():
    rule = Discretisation(rule="exponential", first=10, last=1280, total_steps=400_000)
    assert rule.stage_length == 50_000
    counts = [int(rule(step)) for step in range(0, 400_000, 50_000)]
    assert counts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert int(rule(10**6)) == rule.most == 1281


def test_ct_discretisation_and_decay():
    rule = Discretisation(rule="sqrt", first=2, last=150, total_steps=800_000)
    assert [int(rule(step)) for step in (0, 1, 100_000, 400_000, 800_000)] == [2, 3, 54, 107, 151]
    decays = [float(rule.target_decay(step, 0.9)) for step in (0, 400_000, 800_000)]
    np.testing.assert_allclose(decays, [0.9, 0.99803258, 0.99860547], atol=2e-7)


def test_ict_probabilities():
    expected = [0.06263, 0.18174, 0.24550, 0.21349, 0.14245, 0.08060, 0.04108, 0.01958, 0.00894, 0.00398]
    objective = OBJECTIVES.build("ict")  # N = 11 at step 0
    cumulative = objective.cumulative(jnp.int32(11))[:10]
    np.testing.assert_allclose(np.diff(cumulative, prepend=0.0), expected, atol=6e-6)
    t, _ = jax.jit(objective.times)(BatchKey.create(jax.random.key(0), 200_000), 0)
    found = np.bincount(np.round(np.asarray(t) * 10).astype(int) - 1) / 200_000
    np.testing.assert_allclose(found, expected, atol=4e-3)


def test_ect_ratio():
    """r / t = 1 - (1 + 8 sigmoid(-t)) / q^a, which is close to one for constant q = 256."""
    level = jnp.array([0.5, 5.0])
    expected = 1 - (1 + 8 / (1 + np.exp([0.5, 5.0]))) / 256
    np.testing.assert_allclose(EasyCurriculum(q=256.0, doubling=0).ratio(10**6, level), expected, rtol=1e-6)
    rising = EasyCurriculum(q=2.0, doubling=10)
    assert np.all(rising.ratio(0, level) <= rising.ratio(10, level))
    assert np.all(rising.ratio(100, level) > 0.99)


def test_consistency_scalings(x64):
    """c_skip and c_out have the published values at sigma = 80, and are exact at the boundary."""
    kind = PREDICTIONS.build("consistency")
    np.testing.assert_array_equal(kind.scalings(EDM, np.float64(0.0)), [1.0, 0.0])
    np.testing.assert_allclose(kind.scalings(EDM, np.float64(1.0)), [3.90629272e-05, 0.49997773], rtol=1e-7)
    xt = jnp.array([[0.3, -1.7]])
    prediction = Prediction.from_target(kind, EDM, jnp.array([[5.0, -9.0]]), xt, jnp.zeros(1))
    np.testing.assert_array_equal(prediction.x0, xt)


@pytest.mark.parametrize("name", ["consistency_training", "ict", "ect", "consistency_distillation"])
def test_the_exact_consistency_function_has_no_loss_on_one_point(name):
    exact = point_mass_denoiser(EDM, X0[0])
    context = Context(step=0, target=exact, teacher=exact)
    loss, metrics = loss_of(OBJECTIVES.example(name), exact, {"data": X0}, context=context)
    np.testing.assert_allclose(metrics["mse"], 0, atol=1e-9)
    np.testing.assert_allclose(loss, 0, atol=1e-3)


@pytest.mark.slow
def test_the_distance_lpips_is_of_enlarged_images_and_its_network_stays(x64):
    """LPIPS sees images below 256 pixels at 224, and a step leaves its weights in the state unchanged."""
    objective = OBJECTIVES.build({"name": "consistency_training", "total_steps": 100, "distance": "lpips"})
    state = objective.init_state()
    x0 = jax.random.uniform(jax.random.key(1), (1, 8, 8, 1), jnp.float32, -1, 1)
    found = {}

    def ends(name, shift):
        def denoise(xt, t):
            found[name] = jnp.tanh(xt) + shift
            return Prediction(x0=found[name], noise=xt)

        return denoise

    context = Context(step=50, target=ends("target", 0.0), state=state)
    loss, metrics = objective.loss(ends("end", 0.1), {"data": x0}, keys(1), context)
    big = [jax.image.resize(found[name], (1, 224, 224, 1), "bilinear") for name in ("end", "target")]
    np.testing.assert_allclose(loss, lpips(state, *big)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], np.mean((found["end"] - found["target"]) ** 2), rtol=1e-5)
    assert objective.update_state(state, {}) is state
    with pytest.raises(UserError, match=r"parameters in Context.state"):
        objective.loss(ends("end", 0.1), {"data": x0}, keys(1), Context(step=50, target=ends("target", 0.0)))


def test_an_unknown_distance_lists_the_known_ones():
    with pytest.raises(UserError, match="pseudo_huber"):
        OBJECTIVES.build({"name": "consistency_training", "distance": "l1"})


def test_distillation_has_no_loss_at_the_exact_function_of_a_gaussian(x64):
    """At the exact function only Heun's error between neighbours of 60 levels remains."""
    objective, teacher = OBJECTIVES.build({"name": "consistency_distillation", "levels": 60}), Gaussian().denoiser(EDM)

    def loss(std):
        f = Gaussian(std=std).flow_map(EDM)
        return float(loss_of(objective, f, gaussian_batch(256), 256, Context(target=f, teacher=teacher))[0])

    assert loss(0.5) < 0.1 * min(loss(0.4), loss(0.6))


def test_consistency_training_has_its_gradient_at_zero_at_the_exact_function(x64):
    """The expected gradient for a flow map of variable standard deviation vanishes only at the true value."""
    objective = OBJECTIVES.build({"name": "ict", "first": 160, "last": 160})

    def gradient(std):
        def loss(std):
            return objective.loss(Gaussian(std=std).flow_map(EDM), gaussian_batch(8192), keys(8192), Context())[1][
                "mse"
            ]

        return float(jax.jit(jax.grad(loss))(std))

    below, at, above = gradient(0.4), gradient(0.5), gradient(0.6)
    assert abs(at) < 0.15 * max(abs(below), abs(above))


def test_scm_tangent_vanishes_at_the_exact_function(x64):
    """df/da = 0 along every path of a point mass, and with the teacher's slope also for a Gaussian."""
    trig = SCHEDULES.build("trigflow")
    exact = point_mass_denoiser(trig, X0[0])
    scm = OBJECTIVES.build({"name": "scm", "warmup": 1})
    _, metrics = loss_of(scm, exact, {"data": X0}, context=Context(step=5))
    np.testing.assert_allclose(metrics["tangent"], 0, atol=1e-9)
    scd = OBJECTIVES.build({"name": "scd", "warmup": 1})
    f, teacher = Gaussian().flow_map(trig), Gaussian().denoiser(trig)
    _, metrics = loss_of(scd, f, gaussian_batch(64), 64, Context(step=5, teacher=teacher))
    np.testing.assert_allclose(metrics["tangent"], 0, atol=1e-7)
    _, wrong = loss_of(scd, Gaussian(std=0.7).flow_map(trig), gaussian_batch(64), 64, Context(step=5, teacher=teacher))
    assert wrong["tangent"] > 0.01


def test_scm_is_the_same_in_any_unit(x64):
    """Halving data, noise and denoiser changes no loss if the schedule has the matching sigma_data."""
    trig, half = SCHEDULES.build("trigflow"), SCHEDULES.build({"name": "trigflow", "sigma_data": 0.5})
    large = Gaussian(mean=0.6, std=0.9).flow_map(trig)

    def small(xt, t):
        found = large(2 * xt, t)
        return Prediction(x0=found.x0 / 2, noise=found.noise)

    def loss(schedule, f, image, mean):
        times = {"name": "log_normal", "mean": mean, "std": 1.4}  # distribution of ln(sigma / alpha)
        scm = OBJECTIVES.build({"name": "scm", "schedule": schedule, "warmup": 1, "time_sampler": times})
        return loss_of(scm, f, {"data": image}, 64, Context(step=5))[0]

    image = gaussian_batch(64)["data"]
    losses = loss(trig, large, image, -1.0), loss(half, small, image / 2, -1.0 - math.log(2))
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_progressive_distillation_target(x64):
    """One DDIM step with the target ends where two teacher steps end; the last target is the teacher's x0."""
    schedule = SCHEDULES.build("vp_sde")
    objective = OBJECTIVES.build({"name": "progressive_distillation", "schedule": "vp_sde", "num_steps": 4})
    teacher = Gaussian().denoiser(schedule)
    t = jnp.array([1.0, 0.75, 0.5, 0.25])
    zt = corrupt(schedule, jnp.full((4, 2), 0.4), jnp.full((4, 2), -0.8), t)
    half = teacher(zt, t).at(schedule, t - 0.125)
    second = teacher(half, t - 0.125)
    x = objective.target(teacher, zt, t)
    student = Prediction.from_x0(schedule, x, zt, t).at(schedule, t - 0.25)
    np.testing.assert_allclose(student[:3], second.at(schedule, t - 0.25)[:3], rtol=1e-12)
    np.testing.assert_array_equal(x[3], second.x0[3])


@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_the_exact_flow_map_of_one_point_has_no_loss(name, x64):
    exact = point_mass_denoiser(FLOW, X0[0])
    flow_map = lambda xt, t, *s: exact(xt, t)  # noqa: E731
    loss, _ = loss_of(OBJECTIVES.example(name), flow_map, {"data": X0}, context=Context(target=flow_map))
    np.testing.assert_allclose(loss, 0, atol=1e-9)


def test_mean_flow_identity_on_a_gaussian(x64):
    """The loss of the exact flow map is zero if the marginal velocity replaces that of the example."""
    f = Gaussian().flow_map(FLOW)
    objective = OBJECTIVES.build({"name": "meanflow", "omega": 0.0, "kappa": 1.0, "instantaneous": 0.0})
    _, exact = objective.loss(f, gaussian_batch(64), keys(64), Context(unconditional=f))
    wrong = Gaussian(std=0.6).flow_map(FLOW)
    blend = lambda xt, t, s: wrong(xt, t, s) if s is not t else f(xt, t, s)  # noqa: E731
    _, other = objective.loss(blend, gaussian_batch(64), keys(64), Context(unconditional=f))
    assert exact["mse"] < 1e-12 < 1e-6 < other["mse"]


def test_a_shortcut_model_is_asked_for_no_length_that_is_not_trained(x64):
    """Bootstrapping and samplers request lengths of 2 / M and more, and the velocity instead of length 1 / M."""
    objective, f, lengths = OBJECTIVES.build({"name": "shortcut", "base_steps": 16}), Gaussian().flow_map(FLOW), []

    def asked(xt, t, s):
        lengths.append(np.broadcast_to(t - s, xt.shape[:1]))
        return f(xt, t, s)

    objective.loss(asked, gaussian_batch(128), keys(128), Context(target=asked))
    trained = np.unique(np.round(np.concatenate(lengths), 9))
    np.testing.assert_array_equal(trained, [0, 1 / 8, 1 / 4, 1 / 2, 1])
    with jax.disable_jit():
        for num_steps in (1, 8, 16, 32):
            lengths.clear()
            grid = GRIDS.build("uniform")(FLOW, num_steps)
            sample(SAMPLERS.build("flow_map"), objective.for_sampling(asked), grid, jnp.ones((2, 1)))
            expected = 0.0 if num_steps >= 16 else 1 / num_steps
            np.testing.assert_allclose(np.concatenate(lengths), expected, atol=1e-9)


def perfect_shortcut(num_steps, data):
    """The fixed point of eq. 4: each jump ends where Euler steps of length 1 / M with the exact velocity end."""
    exact = data.denoiser(FLOW)

    def velocity(x, t):
        found = exact(x, t)
        return found.noise - found.x0

    def denoise(xt, t, s):
        t, s = (jnp.broadcast_to(jnp.asarray(time), xt.shape[:1]) for time in (t, s))
        column = lambda time: time.reshape(-1, *(1,) * (xt.ndim - 1))  # noqa: E731

        def euler(i, x):
            going = column(t - (i + 0.5) / num_steps > s)
            return jnp.where(going, x - velocity(x, jnp.maximum(t - i / num_steps, 1e-9)) / num_steps, x)

        x = jax.lax.fori_loop(0, num_steps, euler, xt)
        moved = column(t - s) > 0
        u = jnp.where(moved, (xt - x) / jnp.where(moved, column(t - s), 1.0), velocity(xt, t))
        return Prediction(x0=xt - column(t) * u, noise=xt + (1 - column(t)) * u)

    return denoise


def test_the_perfect_shortcut_model_has_no_bootstrap_loss_and_is_as_far_from_the_flow_as_euler(x64):
    """The perfect model's error falls as 1 / M for any number of steps, and the exact flow map's loss as 1 / M^2."""
    data, noise, errors, losses = Gaussian(), jnp.array([[1.3], [-0.4]]), [], []
    for base_steps in (8, 16, 32):
        objective = OBJECTIVES.build({"name": "shortcut", "bootstrap": 1.0, "base_steps": base_steps})
        perfect = perfect_shortcut(base_steps, data)
        _, metrics = objective.loss(perfect, gaussian_batch(64), keys(64), Context(target=perfect))
        np.testing.assert_allclose(metrics["bootstrap"], 0, atol=1e-18)
        exact = data.flow_map(FLOW)
        losses.append(objective.loss(exact, gaussian_batch(512), keys(512), Context(target=exact))[1]["bootstrap"])
        euler = sample(
            SAMPLERS.build("flow_euler"), data.denoiser(FLOW), GRIDS.build("uniform")(FLOW, base_steps), noise
        )
        for num_steps in (1, 4, base_steps):
            grid = GRIDS.build("uniform")(FLOW, num_steps)
            x0 = sample(SAMPLERS.build("flow_map"), objective.for_sampling(perfect), grid, noise).x0
            np.testing.assert_allclose(x0, euler.x0, rtol=1e-9)
        errors.append(np.abs(x0 - data.flow(FLOW, noise, grid)).max())
    errors, losses = np.array(errors), np.array(losses)
    assert np.all(np.abs(np.log2(errors[:-1] / errors[1:]) - 1) < 0.2)
    assert np.all(np.log2(losses[:-1] / losses[1:]) > 1.6)


def test_the_truncated_snr_has_no_upper_end():
    """max(SNR, 1) exceeds 10,000 by far near clean data, where a student of 8,192 steps starts."""
    objective = OBJECTIVES.build({"name": "progressive_distillation", "num_steps": 8192, "schedule": "clipped_cosine"})
    t = jnp.array([1 / 8192, 0.5, 0.9])
    found = objective.weighting(PREDICTIONS.build("x0"), objective.schedule, t)
    np.testing.assert_allclose(found, np.maximum(np.exp(objective.schedule.log_snr(np.asarray(t))), 1), rtol=1e-4)
    assert found[0] > 1e7


def test_reflow_pairs_make_straight_paths():
    """The flow-matching loss of a Gaussian's straight flow is zero on its own pairs, but not on independent pairs."""

    def straight(xt, t):
        t = jnp.reshape(t, (-1, 1)) if jnp.ndim(t) else t
        noise = (xt - 0.3 * (1 - t)) / (t + 0.5 * (1 - t))
        return Prediction(x0=0.3 + 0.5 * noise, noise=noise)

    objective = OBJECTIVES.build({"name": "reflow", "steps": 4})
    loss, _ = objective.loss(straight, gaussian_batch(64), keys(64), Context(teacher=straight))
    np.testing.assert_allclose(loss, 0, atol=1e-9)
    independent = OBJECTIVES.build("flow_matching").loss(straight, gaussian_batch(64), keys(64))[0]
    assert independent > 0.1
    noise = keys(64).normal((2,))
    given = {"data": 0.3 + 0.5 * noise, "noise": noise}
    np.testing.assert_allclose(objective.loss(straight, given, keys(64))[0], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "meanflow", "schedule": "edm"}, "schedule.name=rectified_flow"),
        ({"name": "scm", "schedule": "edm"}, "schedule.name=trigflow"),
        ({"name": "ict", "schedule": "rectified_flow"}, "infinite at t = 1"),
        ({"name": "shortcut", "base_steps": 100}, "power of two"),
        ({"name": "progressive_distillation", "num_steps": 0}, "num_steps >= 1"),
        ({"name": "vdm", "schedule": "vp_sde"}, "use vdm_linear"),
        ({"name": "vlb", "schedule": "edm"}, "use ddpm_linear"),
        (
            {"name": "mdlm", "process": {"name": "tokens", "num_tokens": 1}},
            "num_tokens must be a whole number of at least 2",
        ),
        ({"name": "mdlm", "process": {"name": "tokens", "noise": "uniform"}}, "must be 'mask'"),
        ({"name": "mdlm", "process": "token_chain"}, "process must be a TokenProcess, it is a TokenChain"),
        ({"name": "d3pm", "process": {"name": "token_chain", "kind": "mask"}}, "'absorbing'"),
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        OBJECTIVES.build(spec)
