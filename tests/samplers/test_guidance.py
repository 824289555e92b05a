"""Guidance rules: shared properties (scale 1, the interval, the form of a denoiser), and each rule's own formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import GUIDANCE, SAMPLERS, guided, sample, samplers_of
from diffusion_jax.samplers.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    DynamicThreshold,
    NoGuidance,
    TwoScales,
    network_evaluations,
    of_clean,
    thresholded,
    towards,
)
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Prediction
from diffusion_jax.specs import DataSpec
from tests.samplers.closed_form import Gaussian

SCHEDULE = SCHEDULES.build("edm")
CONDITIONS = {"label": jnp.array([0, 1]), "image": jnp.array([0.2, -0.1])}
NULL = {"label": jnp.array([2, 2]), "image": jnp.zeros(2)}
ASKED = ("label", "image")
PIXELS = DataSpec(kind="pixels", shape=(2, 2, 1))
LOGITS = DataSpec(kind="tokens", shape=(3,), num_values=5)


def conditional(xt, t, conditions, *s, calls=None):
    """Data whose mean depends on a picture and on the label (-0.5, 0.5, and 0 without a label)."""
    if calls is not None:
        calls.append(xt.shape)
    means = (jnp.array([-0.5, 0.5, 0.0])[conditions["label"]] + conditions["image"])[:, None]
    centred = Gaussian(mean=0.0).denoiser(SCHEDULE)(xt - means, t)
    return type(centred)(x0=centred.x0 + means, noise=centred.noise)


def at(conditions):
    return lambda xt, t: conditional(xt, t, conditions)


def others():
    """A worse network and a linear classifier."""
    return {
        "worse": Gaussian(mean=0.1, std=0.8).denoiser(SCHEDULE),
        "classifier": towards(SCHEDULE, lambda x, t: 0.7 * jnp.sum(x, axis=1)),
    }


def bound(rule, denoise=conditional, schedule=SCHEDULE, null=NULL):
    return guided(rule, denoise, CONDITIONS, schedule=schedule, null=null, asked=ASKED, others=others())


def called(rule, xt, t, **options):
    """The prediction in the first step, for rules with and without memory."""
    found = bound(rule, **options)
    return found(xt, t, memory=rule.first_memory(xt))[0] if rule.remembers else found(xt, t)


def rules(**changes):
    return [(name, dataclasses.replace(GUIDANCE.example(name), **changes)) for name in GUIDANCE if name != "none"]


NAMES = [name for name, _ in rules()]


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_at_scale_1_a_rule_is_the_conditional_prediction_bit_for_bit(name):
    example = GUIDANCE.example(name)
    ones = {f.name: 1.0 for f in dataclasses.fields(example) if f.name in ("scale", "image_scale")}
    rule, xt = dataclasses.replace(example, **ones), jnp.array([[0.3, 1.0], [-2.0, 0.1]])
    assert rule.neutral
    assert not rule.remembers
    assert rule.evaluations(ASKED) == 1
    found = guided(rule, conditional, CONDITIONS)(xt, 0.6)  # needs nothing else
    jax.tree.map(np.testing.assert_array_equal, found, conditional(xt, 0.6, CONDITIONS))
    rule.check((), LOGITS, is_flow_map=True)


@pytest.mark.parametrize(("name", "rule"), rules(), ids=NAMES)
def test_every_rule_is_a_denoiser(name, rule):
    """A rule moves x0, its noise and x0 combine to xt, and t may be given per row."""
    xt, t = jax.random.normal(jax.random.key(0), (2, 6)), jnp.array([0.6, 0.6])
    found, plain = called(rule, xt, t), conditional(xt, t, CONDITIONS)
    assert jnp.abs(found.x0 - plain.x0).max() > 0.01 or rule.of_pixels
    alpha, sigma = (curve(t)[:, None] for curve in (SCHEDULE.alpha, SCHEDULE.sigma))
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.noise, xt, atol=1e-5)
    np.testing.assert_allclose(called(rule, xt, 0.6).x0, found.x0, rtol=1e-6)


@pytest.mark.parametrize(("name", "rule"), rules(), ids=NAMES)
def test_an_example_does_not_depend_on_its_neighbours(name, rule):
    xt = jax.random.normal(jax.random.key(0), (2, 6))
    rows = {key: value[:1] for key, value in CONDITIONS.items()}, {key: value[:1] for key, value in NULL.items()}
    alone = guided(rule, conditional, rows[0], schedule=SCHEDULE, null=rows[1], asked=ASKED, others=others())
    memory = {"memory": jnp.zeros((1, 6))} if rule.remembers else {}
    found = alone(xt[:1], 0.5, **memory)
    found = found[0] if rule.remembers else found
    np.testing.assert_allclose(found.x0, called(rule, xt, 0.5).x0[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "rule"), rules(interval=(0.19, 1.61)), ids=NAMES)
def test_an_interval_is_guided_inside_and_skips_the_evaluation_outside(name, rule):
    rows, grid = [], GRIDS.build("uniform")(SCHEDULE, 32)

    def counting(xt, t, conditions):
        jax.debug.callback(lambda size=xt.shape[0]: rows.append(size))
        return conditional(xt, t, conditions)

    memory = rule.first_memory if rule.remembers else None
    result = sample(SAMPLERS.build("euler"), bound(rule, counting), grid, jnp.zeros((2, 3)), memory=memory)
    jax.block_until_ready(result.x0)
    jax.effects_barrier()
    inside = 6  # steps 17 to 22 of EDM2's 32
    own = len(rule.asks(ASKED))
    assert sorted(rows) == sorted([2] * (32 - inside) + [2 * own] * inside)
    counted = network_evaluations(rule, ASKED, 32, schedule=SCHEDULE, times=lambda: grid.times[:-1])
    assert counted == 32 + inside * (own + len(rule.others) - 1)
    outside = called(rule, jnp.ones((2, 3)), jnp.asarray(grid.times[3]))
    np.testing.assert_allclose(outside.x0, conditional(jnp.ones((2, 3)), grid.times[3], CONDITIONS).x0, rtol=1e-6)
    with pytest.raises(UserError, match="one number for the whole batch"):
        called(rule, jnp.ones((2, 3)), jnp.ones(2))


def test_an_interval_has_two_ends():
    for interval in ((2.0, 1.0), (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(UserError, match="low below high"):
            ClassifierFree(scale=2.0, interval=interval)


@pytest.mark.parametrize(("name", "rule"), rules(), ids=NAMES)
def test_linear_rules_are_for_logits_too_and_others_are_refused(name, rule):
    linear, logits = rule.linear, jax.random.normal(jax.random.key(1), (3, 2, 4))
    if linear and not rule.others:
        rule.check(ASKED, LOGITS)
        asks = rule.asks(ASKED)
        found = rule(*logits[: len(asks)])
        np.testing.assert_allclose(rule(*(logits[: len(asks)] + 1.0)), found + 1.0, rtol=1e-5)  # weights add up to 1
    if not linear:
        for arguments in ({"data": LOGITS}, {"data": PIXELS, "is_flow_map": True}):
            with pytest.raises(UserError, match=r"states x0, but the network predicts .*: use classifier_free"):
                rule.check(ASKED, **arguments)
    rescaled = dataclasses.replace(rule, rescale=0.5)
    assert not rescaled.linear
    with pytest.raises(UserError, match="rescale 0"):
        rescaled.check(ASKED, LOGITS)


@pytest.mark.parametrize(("name", "rule"), rules(rescale=1.0), ids=NAMES)
def test_rescaled_guidance_has_the_deviation_of_the_conditional_x0(name, rule):
    xt = jax.random.normal(jax.random.key(0), (2, 50))
    found, plain = called(rule, xt, 0.4), conditional(xt, 0.4, CONDITIONS)
    np.testing.assert_allclose(jnp.std(found.x0, axis=1), jnp.std(plain.x0, axis=1), rtol=1e-5)
    np.testing.assert_allclose(SCHEDULE.alpha(0.4) * found.x0 + SCHEDULE.sigma(0.4) * found.noise, xt, atol=1e-5)
    with pytest.raises(UserError, match="give the schedule"):
        bound(rule, schedule=None)


@pytest.mark.parametrize(("name", "rule"), rules(), ids=NAMES)
def test_what_a_rule_needs_and_lacks_is_one_clear_line(name, rule):
    for other in rule.others:
        with pytest.raises(UserError, match=f"guidance {name} needs '{other}'"):
            guided(rule, conditional, CONDITIONS, schedule=SCHEDULE, null=NULL)
    if len(rule.asks(ASKED)) > 1:
        for null in (None, {}):
            with pytest.raises(UserError, match="needs a null condition"):
                bound(rule, null=null)
        with pytest.raises(UserError, match=f"guidance {name} needs a conditional network"):
            rule.check((), PIXELS)
        with pytest.raises(UserError, match="same shapes"):
            bound(rule, null={**NULL, "label": jnp.array([2])})


@pytest.mark.parametrize("t", [0.6, jnp.array([0.6, 0.2])])
def test_classifier_free_is_linear_in_the_scale(t):
    xt = jnp.array([[0.3, 1.0], [-2.0, 0.1]])
    only = {0: conditional(xt, t, NULL), 1: conditional(xt, t, CONDITIONS)}
    for scale in (0.0, 1.0, 0.5, 3.0):
        expected = jax.tree.map(lambda u, c, w=scale: u + w * (c - u), only[0], only[1])
        found = bound(ClassifierFree(scale=scale))(xt, t)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_at_scale_0_and_1_only_what_counts_is_evaluated():
    for scale, shapes in ((0.0, [(2, 1)]), (1.0, [(2, 1)]), (1.5, [(4, 1)])):
        calls, rule = [], ClassifierFree(scale=scale)
        bound(rule, lambda *a, calls=calls: conditional(*a, calls=calls))(jnp.zeros((2, 1)), 0.5)
        assert calls == shapes
        assert network_evaluations(rule, ASKED, 7) == 7 * sum(shape[0] for shape in shapes) // 2


def test_guided_gaussians():
    """The mean of N(m_c, s^2) and N(m_u, s^2) guided by w is m_u + w (m_c - m_u), also for negative conditions."""
    grid, w = GRIDS.build("uniform")(SCHEDULE, 20), 3.0
    conditional_mean, null_mean = np.array([-0.3, 0.4]), np.zeros(2)
    for name, away in (("classifier_free", null_mean), ("negative", null_mean)):
        rule = dataclasses.replace(GUIDANCE.example(name), scale=w)
        found = sample(SAMPLERS.build("heun"), bound(rule), grid, jnp.zeros((2, 1))).x0[:, 0]
        np.testing.assert_allclose(found, away + w * (conditional_mean - away), atol=0.06)


def test_away_from_a_worse_network():
    xt, worse = jax.random.normal(jax.random.key(0), (2, 5)), others()["worse"]
    found = called(GUIDANCE.build({"name": "autoguidance", "scale": 2.0, "guide": "a"}), xt, 0.5).x0
    np.testing.assert_allclose(found, 2 * conditional(xt, 0.5, CONDITIONS).x0 - worse(xt, 0.5).x0, rtol=1e-5, atol=1e-6)


def test_two_scales_of_a_picture_and_a_text():
    """InstructPix2Pix, eq. 3, on a denoiser that adds its conditions."""
    xt, t = jax.random.normal(jax.random.key(0), (2, 5)), 0.5
    both, image, nothing = (
        conditional(xt, t, {**CONDITIONS, **{name: NULL[name] for name in slots}}).x0
        for slots in ((), ("label",), ("label", "image"))
    )
    rule = TwoScales(scale=7.5, image_scale=1.5)
    expected = nothing + 1.5 * (image - nothing) + 7.5 * (both - image)
    np.testing.assert_allclose(called(rule, xt, t).x0, expected, rtol=1e-4, atol=1e-5)
    same = TwoScales(scale=3.0, image_scale=3.0)
    np.testing.assert_allclose(
        called(same, xt, t).x0, called(ClassifierFree(scale=3.0), xt, t).x0, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(
        UserError, match="guides towards 'image' and another condition, but this network is asked for label"
    ):
        rule.check(("label",), PIXELS)


def test_projected_guidance():
    """eta = 1 without a threshold is classifier-free; eta = 0 moves x0 only orthogonally to the conditional x0."""
    xt = jax.random.normal(jax.random.key(0), (2, 50))
    plain, base = called(ClassifierFree(scale=4.0), xt, 0.4), conditional(xt, 0.4, CONDITIONS).x0
    same, across, short = (
        called(AdaptiveProjected(scale=4.0, **o), xt, 0.4)
        for o in ({"eta": 1.0}, {"eta": 0.0}, {"eta": 1.0, "norm_threshold": 0.1})
    )
    np.testing.assert_allclose(same.x0, plain.x0, atol=1e-5)
    np.testing.assert_allclose(jnp.sum((across.x0 - base) * base, axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(short.x0 - base, axis=1), 0.3, rtol=1e-4)


def constant(difference):
    """A denoiser whose x0 is 0 without a condition and `difference` with one, for any xt."""
    from diffusion_jax.schedulers import Prediction

    def denoise(xt, t, conditions):
        told = (conditions["label"] < 2).astype(xt.dtype)[:, None]
        return Prediction.from_x0(SCHEDULE, told * difference * jnp.ones_like(xt), xt, t)

    return denoise


def test_momentum_is_a_running_sum_over_steps():
    """For a constant difference of 1, delta_n = 1 + momentum delta_{n-1}, and the last x0 is 1 + (w - 1) delta_N."""
    grid, steps = GRIDS.build("uniform")(SCHEDULE, 6), 6
    rule = AdaptiveProjected(scale=3.0, eta=1.0, momentum=-0.5)
    assert rule.remembers
    for name in ("euler", "heun", "ddim", "dpmpp_2m"):
        denoise = bound(rule, constant(1.0))
        found = sample(SAMPLERS.build(name), denoise, grid, jnp.zeros((2, 4)), memory=rule.first_memory).x0
        delta = sum((-0.5) ** n for n in range(steps))
        if name != "dpmpp_2m":  # which mixes the last two predictions
            np.testing.assert_allclose(found, 1.0 + 2.0 * delta, rtol=1e-4)
        forgetful = dataclasses.replace(rule, momentum=0.0)
        plain = sample(SAMPLERS.build(name), bound(forgetful, constant(1.0)), grid, jnp.zeros((2, 4))).x0
        np.testing.assert_allclose(plain, 3.0, rtol=1e-4)


def grids():
    """Yield the name and instance of every sampler that takes a denoiser."""
    for name in samplers_of("gaussian"):
        sampler = SAMPLERS.example(name)
        if sampler.denoiser_kind == "denoiser":
            yield name, sampler


@pytest.mark.parametrize(("name", "sampler"), list(grids()), ids=[name for name, _ in grids()])
def test_every_sampler_carries_a_memory_or_is_refused(name, sampler):
    schedule = SCHEDULES.build("ddpm_linear")
    grid = GRIDS.build("uniform")(schedule, 20)
    rule = AdaptiveProjected(scale=3.0, momentum=-0.5)

    def run(memory):
        denoise = guided(rule, conditional, CONDITIONS, schedule=schedule, null=NULL, asked=ASKED)
        return sample(sampler, denoise, grid, (3,), BatchKey.create(jax.random.key(0), 2), memory=memory)

    if sampler.asks_in_loops:
        with pytest.raises(UserError, match="within its own loop, where guidance with momentum cannot keep its state"):
            jax.eval_shape(lambda: run(rule.first_memory).x0)
    else:
        assert jax.eval_shape(lambda: run(rule.first_memory).x0).shape == (2, 3)


def test_classifier_guidance_of_a_gaussian_is_the_posterior():
    """With log p(y | xt) = k xt the mean moves by the score's gradient; the paper's scale is scale - 1."""
    k, rule = 0.7, GUIDANCE.build({"name": "classifier", "scale": 3.0})
    xt, t = jnp.array([[0.2, -0.4], [1.0, 0.3]]), 0.4
    expected = conditional(xt, t, CONDITIONS).x0 + SCHEDULE.sigma(0.4) ** 2 * 2.0 * k
    np.testing.assert_allclose(called(rule, xt, t).x0, expected, rtol=1e-5)


def test_a_classifier_of_clean_data_judges_the_predicted_x0():
    """The gradient passes through the denoiser, whose slope for N(0, s^2) is alpha s^2 / (alpha^2 s^2 + sigma^2)."""
    data, t, xt = Gaussian(mean=0.0, std=0.5), 0.4, jnp.array([[0.2, -0.4]])
    change = towards(SCHEDULE, of_clean(data.denoiser(SCHEDULE), lambda x0: 0.7 * jnp.sum(x0, axis=1)))(xt, t)
    sigma = SCHEDULE.sigma(t)
    np.testing.assert_allclose(change.x0, sigma**2 * 0.7 * 0.25 / (0.25 + sigma**2) * jnp.ones((1, 2)), rtol=1e-5)


def test_dynamic_threshold():
    x0 = jnp.concatenate([jnp.linspace(-0.5, 0.5, 100)[None], jnp.linspace(-4, 4, 100)[None]])
    found = thresholded(x0, 0.9, 1.0)
    np.testing.assert_allclose(found[0], x0[0], atol=1e-6)  # values are never stretched
    assert np.abs(found[1]).max() <= 1
    np.testing.assert_allclose(found[1][50:60], x0[1][50:60] / np.quantile(np.abs(x0[1]), 0.9), rtol=1e-4)
    xt = 40.0 * jax.random.normal(jax.random.key(0), (2, 50))
    assert np.abs(called(ClassifierFree(scale=40.0), xt, 0.4).x0).max() > 1
    assert np.abs(called(DynamicThreshold(scale=40.0), xt, 0.4).x0).max() <= 1
    with pytest.raises(UserError, match="percentile"):
        DynamicThreshold(percentile=0.0)
    with pytest.raises(UserError, match=r"pixels within \[-1, 1\], but the diffused data is latents"):
        DynamicThreshold(scale=2.0).check(ASKED, DataSpec(kind="latents", shape=(4, 4, 4)))


def test_guidance_of_a_flow_map_passes_the_second_time_on():
    seen = []

    def flow_map(xt, t, conditions, s):
        seen.append((jnp.shape(t), jnp.shape(s)))
        return conditional(xt, t, conditions)

    for scale in (1.0, 2.0):
        bound(ClassifierFree(scale=scale), flow_map)(jnp.zeros((2, 1)), jnp.full(2, 0.5), jnp.full(2, 0.1))
    assert seen == [((2,), (2,)), ((4,), (4,))]


def test_no_guidance_takes_no_scale():
    with pytest.raises(UserError, match="guidance none has scale 1"):
        NoGuidance(scale=2.0)
    with pytest.raises(UserError, match="unknown guidance rule 'apgg'; did you mean 'apg'"):
        GUIDANCE.build("apgg")


def test_a_difference_is_kept_for_some_steps_and_counted():
    """The first of every two steps applies the rule; the second evaluates once and reuses the velocity difference."""
    rule, xt = (
        GUIDANCE.build({"name": "classifier_free", "scale": 3.0, "reuse": 2}),
        jnp.array([[0.3, 1.0], [-2.0, 0.1]]),
    )
    whole = called(dataclasses.replace(rule, reuse=1), xt, 0.6)
    denoise, memory = bound(rule), rule.first_memory(xt)
    first, memory = denoise(xt, 0.6, memory=memory)
    np.testing.assert_allclose(first.x0, whole.x0, rtol=1e-6)
    again, memory = denoise(xt, 0.6, memory=memory)
    np.testing.assert_allclose(again.x0, whole.x0, rtol=1e-4, atol=1e-5)  # the same at the same point
    there, memory = denoise(xt, 0.3, memory=memory)
    np.testing.assert_allclose(there.x0, called(dataclasses.replace(rule, reuse=1), xt, 0.3).x0, rtol=1e-6)
    kept, _ = denoise(xt, 0.2, memory=memory)
    alpha, sigma = SCHEDULE.alpha(jnp.float32(0.2)), SCHEDULE.sigma(jnp.float32(0.2))
    np.testing.assert_allclose(alpha * kept.x0 + sigma * kept.noise, xt, rtol=1e-4, atol=1e-5)
    assert np.abs(kept.x0 - conditional(xt, 0.2, CONDITIONS).x0).max() > 1e-4
    assert network_evaluations(rule, ASKED, 7) == 7 + 4
    for options in ({"interval": (0.1, 1.0)}, {"rescale": 0.5}):
        with pytest.raises(UserError, match="with reuse 2 keeps a difference from step to step"):
            GUIDANCE.build({"name": "classifier_free", "scale": 3.0, "reuse": 2, **options})


def test_a_walk_that_keeps_a_constant_velocity_is_the_whole_walk():
    """On straight paths the reused difference is exact in every step, so reusing it changes nothing."""
    schedule, velocities = SCHEDULES.build("rectified_flow"), jnp.array([1.0, -0.4, 0.3])

    def denoise(xt, t, conditions):
        v = velocities[conditions["label"]][:, None]
        return Prediction(x0=xt - t * v, noise=xt + (1.0 - t) * v)

    def walked(reuse):
        rule = GUIDANCE.build({"name": "classifier_free", "scale": 3.0, "reuse": reuse})
        memory = rule.first_memory if rule.remembers else None
        noise = jnp.array([[0.3, 1.0], [-2.0, 0.1]])
        grid = GRIDS.build("uniform")(schedule, 7)
        return sample(SAMPLERS.build("flow_euler"), bound(rule, denoise, schedule), grid, noise, memory=memory).x0

    expected = jnp.array([[0.3, 1.0], [-2.0, 0.1]]) - (0.3 + 3.0 * (velocities[:2] - 0.3))[:, None]
    for reuse in (1, 2, 3):
        np.testing.assert_allclose(walked(reuse), expected, rtol=1e-5)
