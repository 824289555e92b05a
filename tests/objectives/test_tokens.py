"""Discrete diffusion: D3PM's matrices, bounds with known values, and samplers with known marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, example_inputs, init_params
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample_tokens, samplers_of
from diffusion_jax.schedulers import (
    TOKEN_SCHEDULES,
    TokenChain,
    TokenProcess,
)

P = np.array([0.1, 0.4, 0.2, 0.3])  # distribution of one token
TRUE_LOGITS = jnp.log(jnp.asarray(P, jnp.float32))


def keys(size, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


def process(noise="mask", schedule="linear"):
    return TokenProcess(schedule=TOKEN_SCHEDULES.build(schedule), num_tokens=4, noise=noise)


def x0_posterior(noise, schedule="linear"):
    """The exact token denoiser log p(x0 | x_t) for independent tokens with distribution P."""
    kind = process(noise, schedule)

    def denoise(xt, t):
        kept = jnp.asarray(kind.schedule.kept(t)).reshape(-1, *(1,) * xt.ndim) if jnp.ndim(t) else kind.schedule.kept(t)
        if noise == "mask":
            known = jax.nn.one_hot(xt, 4) > 0
            return jnp.where((xt == 4)[..., None], TRUE_LOGITS, jnp.where(known, 0.0, -30.0))
        likelihood = kept * jax.nn.one_hot(xt, 4) + (1 - kept) / 4
        return jnp.log(likelihood * jnp.asarray(P, jnp.float32))

    return denoise


def score_logits(noise, schedule="linear"):
    """The ideal output of SEDD's network: log p(x0) for masks, log ratios of the marginal for uniform noise."""
    kind = process(noise, schedule)

    def denoise(xt, t):
        if noise == "mask":
            return jnp.broadcast_to(TRUE_LOGITS, (*xt.shape, 4))
        kept = jnp.asarray(kind.schedule.kept(t))
        kept = kept.reshape(-1, *(1,) * xt.ndim) if kept.ndim else kept
        marginal = kept * jnp.asarray(P, jnp.float32) + (1 - kept) / 4
        marginal = jnp.broadcast_to(marginal, (*xt.shape, 4))
        return jnp.log(marginal) - jnp.log(jnp.take_along_axis(marginal, jnp.minimum(xt, 3)[..., None], -1))

    return denoise


def draws(size, shape=(8,)):
    return jax.random.categorical(jax.random.key(9), TRUE_LOGITS, shape=(size, *shape))


def test_d3pm_matrices():
    chain = TokenChain(num_tokens=256, num_steps=2, kind="gaussian")
    q = chain.matrix(0.02)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-12)
    np.testing.assert_allclose(q.sum(1), 1, atol=1e-12)
    found = [q[0, 0], q[128, 128], q[0, 1]]
    np.testing.assert_allclose(found, [0.51564479531, 0.03128959062, 0.0311934998], rtol=1e-8)
    assert chain.absorbing == 128
    uniform = TokenChain(num_tokens=5, num_steps=7, kind="uniform")
    kept = np.cumprod(1 - uniform.betas())
    np.testing.assert_allclose(uniform.matrices[1][-1], kept[-1] * np.eye(5) + (1 - kept[-1]) / 5, atol=1e-7)


def test_d3pm_absorbing_share_is_t():
    chain = TokenChain(num_tokens=6, num_steps=10, kind="absorbing")
    masked = chain.matrices[1][:, 0, chain.absorbing]
    np.testing.assert_allclose(masked, np.arange(11) / 10, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "gaussian"])
def test_d3pm_posterior_is_bayes_rule(kind):
    chain = TokenChain(num_tokens=4, num_steps=6, kind=kind)
    single, cumulative = (table.astype(np.float64) for table in chain.matrices)
    for step in (2, 5):
        for x0 in range(4):
            for xt in range(4):
                if cumulative[step][x0, xt] < 1e-6:
                    continue
                expected = cumulative[step - 1][x0] * single[step - 1][:, xt] / cumulative[step][x0, xt]
                found = chain.posterior(jnp.array([[xt]]), jax.nn.one_hot(jnp.array([[x0]]), 4), jnp.array([step]))
                np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "gaussian"])
def test_d3pm_perfect_model_has_no_kl_and_uniform_logits_cost_log2_k(kind):
    chain = TokenChain(num_tokens=4, num_steps=6, kind=kind)
    objective = OBJECTIVES.build({"name": "d3pm", "process": chain})
    x0 = draws(12)
    step = jnp.asarray(np.tile(np.arange(1, 7), 2))
    xt = chain.corrupt(x0, step, keys(12))
    knows = 40.0 * jax.nn.one_hot(x0, 4)
    np.testing.assert_allclose(objective.bits(knows, x0, xt, step), 0, atol=1e-5)
    guess = objective.bits(jnp.zeros((12, 8, 4)), x0, xt, step)
    np.testing.assert_allclose(guess[np.asarray(step) == 1], 2.0, rtol=1e-5)
    assert np.all(guess > -1e-6)


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "gaussian"])
def test_the_hybrid_loss_by_paper_and_by_code(kind):
    """The paper's bound is a sum over T steps, the code's is their mean; both terms are in bits."""
    x0, logits = draws(64), jax.random.normal(jax.random.key(4), (64, 8, 4))
    chain = {"name": "token_chain", "kind": kind, "num_tokens": 4, "num_steps": 50}
    spec = {"name": "d3pm", "process": chain, "cross_entropy_weight": 0.01}
    found = {}
    for normalization in ("paper", "code"):
        objective = OBJECTIVES.build({**spec, "normalization": normalization})
        found[normalization], metrics = objective.loss(lambda xt, t: logits, {"data": x0}, keys(64))
    vb, cross_entropy = metrics["vb"], metrics["cross_entropy"] / np.log(2)
    np.testing.assert_allclose(found["paper"], vb + 0.01 * cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(found["code"], vb / 50 + 0.01 * cross_entropy, rtol=1e-5)
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(x0)[..., None], -1).mean()
    np.testing.assert_allclose(metrics["cross_entropy"], nats, rtol=1e-5)
    with pytest.raises(UserError, match="'paper'"):
        OBJECTIVES.build({**spec, "normalization": "sum"})


def test_the_last_step_of_d3pm_takes_the_likeliest_value_as_the_authors_code_does():
    """The last step takes the value with the largest logit, and earlier steps sample."""
    chain = TokenChain(num_tokens=4, num_steps=6, kind="uniform")
    logits = lambda xt, t: jnp.broadcast_to(0.1 * jnp.arange(4.0), (*xt.shape, 4))  # noqa: E731

    def states(last_step):
        sampler = SAMPLERS.build({"name": "d3pm_ancestral", "last_step": last_step})
        return sample_tokens(sampler, logits, chain, 6, (8,), keys(64), return_trajectory=True).trajectory

    likeliest, drawn = states("argmax"), states("draw")
    np.testing.assert_array_equal(likeliest[-1], 3)
    np.testing.assert_array_equal(likeliest[:-1], drawn[:-1])
    assert len(np.unique(drawn[-1])) == 4
    with pytest.raises(UserError, match="'argmax'"):
        SAMPLERS.build({"name": "d3pm_ancestral", "last_step": "mode"})


@pytest.mark.parametrize("name", ["mdlm", "sedd", "discrete_flow"])
def test_times_of_tokens_begin_at_a_thousandth(name):
    """t = 0.001 + 0.999 u, with the authors' sampling_eps."""
    objective = OBJECTIVES.build({"name": name, "process": process()})
    t = np.sort(objective.times(keys(1000)))
    np.testing.assert_allclose(np.diff(t), 0.999 / 1000, rtol=1e-2)
    assert 1e-3 <= t[0] < 2e-3 + 1e-6
    assert t[-1] < 1
    other = OBJECTIVES.build({"name": name, "process": process(), "least_time": 0.25})
    assert 0.25 <= np.min(other.times(keys(1000))) < 0.251
    with pytest.raises(UserError, match="least_time"):
        OBJECTIVES.build({"name": name, "process": process(), "least_time": 0.0})


def test_mdlm_weight_is_one_over_t_and_a_uniform_guess_costs_log_v():
    objective = OBJECTIVES.build({"name": "mdlm", "process": {"name": "tokens", "num_tokens": 50257}})
    t = jnp.linspace(0.05, 1.0, 20)
    np.testing.assert_allclose(objective.weight(t), 1 / t, rtol=1e-5)
    masked = 1 - objective.process.schedule.kept(t)
    np.testing.assert_allclose(objective.weight(t) * masked * np.log(50257), 10.8140802146, rtol=1e-5)


def test_mdlm_known_tokens_cost_nothing_and_the_bound_is_the_entropy():
    objective = OBJECTIVES.build({"name": "mdlm", "process": process()})
    batch = {"data": draws(20000)}
    seen = {}

    def denoise(xt, t):
        seen["xt"] = xt
        return x0_posterior("mask")(xt, t)

    loss, metrics = objective.loss(denoise, batch, keys(20000))
    entropy = -np.sum(P * np.log(P))
    np.testing.assert_allclose(loss, 0.999 * entropy, rtol=0.02)
    np.testing.assert_allclose(metrics["bits"], loss / np.log(2), rtol=1e-6)
    wrong_where_known = lambda xt, t: jnp.where((xt == 4)[..., None], TRUE_LOGITS, 0.0)  # noqa: E731
    np.testing.assert_allclose(objective.loss(wrong_where_known, batch, keys(20000))[0], loss, rtol=1e-6)


@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_sedd_score_entropy_is_least_at_the_true_ratios(noise):
    """The score entropy is not negative, zero at the ratios given x0, and on average least at the marginal ratios."""
    objective = OBJECTIVES.build({"name": "sedd", "process": process(noise)})
    x0, t = draws(64), jnp.full((64,), 0.5)
    xt, _ = objective.process.corrupt(x0, t, keys(64))
    if noise == "uniform":
        kept = objective.process.schedule.kept(0.5)
        p = kept * jax.nn.one_hot(x0, 4) + (1 - kept) / 4
        exact = jnp.log(p) - jnp.log(jnp.take_along_axis(p, xt[..., None], -1))
    else:
        exact = jnp.where(jax.nn.one_hot(x0, 4) > 0, 0.0, -40.0)
    np.testing.assert_allclose(objective.score_entropy(exact, x0, xt, t), 0, atol=1e-5)
    assert np.all(objective.score_entropy(exact + 0.3, x0, xt, t) >= -1e-6)
    batch = {"data": draws(20000)}
    best = objective.loss(score_logits(noise), batch, keys(20000))[0]
    for shift in (-0.3, 0.3):
        worse = lambda xt, t, s=shift: score_logits(noise)(xt, t) + s * jnp.arange(4.0)  # noqa: E731
        assert objective.loss(worse, batch, keys(20000))[0] > best


def test_discrete_flow_is_least_at_the_posterior():
    for noise in ("mask", "uniform"):
        objective = OBJECTIVES.build({"name": "discrete_flow", "process": process(noise)})
        batch = {"data": draws(20000)}
        best = objective.loss(x0_posterior(noise), batch, keys(20000))[0]
        other = lambda xt, t, n=noise: x0_posterior(n)(xt, t) + 0.3 * jnp.arange(4.0)  # noqa: E731
        assert objective.loss(other, batch, keys(20000))[0] > best


SAMPLERS_AND_NOISE = [
    ("mdlm", "mask", x0_posterior),
    ("mdlm_cached", "mask", x0_posterior),
    ("sedd_euler", "mask", score_logits),
    ("sedd_euler", "uniform", score_logits),
    ("sedd_tau_leaping", "mask", score_logits),
    ("sedd_tau_leaping", "uniform", score_logits),
    ("sedd_analytic", "mask", score_logits),
    ("sedd_analytic", "uniform", score_logits),
    ("discrete_flow_euler", "mask", x0_posterior),
    ("discrete_flow_euler", "uniform", x0_posterior),
]


@pytest.mark.parametrize(("name", "noise", "exact"), SAMPLERS_AND_NOISE)
def test_samplers_give_the_distribution_of_the_data(name, noise, exact):
    run = jax.jit(lambda key: sample_tokens(SAMPLERS.build(name), exact(noise), process(noise), 64, (8,), key))
    tokens = np.asarray(run(keys(4096)).tokens)
    shares = np.bincount(tokens.ravel(), minlength=4) / tokens.size
    assert len(shares) == 4
    np.testing.assert_allclose(shares, P, atol=0.02)


def test_one_step_of_mdlm_is_a_draw_from_the_model():
    tokens = sample_tokens(SAMPLERS.build("mdlm"), x0_posterior("mask"), process(), 1, (8,), keys(4096)).tokens
    np.testing.assert_allclose(np.bincount(np.asarray(tokens).ravel()) / tokens.size, P, atol=0.01)


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "gaussian"])
def test_d3pm_ancestral_gives_the_distribution_of_the_data(kind):
    chain = TokenChain(num_tokens=4, num_steps=20, kind=kind)
    cumulative = jnp.asarray(chain.matrices[1])

    def denoise(xt, t):
        """The joint of eq. 4 already includes x_n, so the exact logits do not; the last step needs p(x0 | x_1)."""
        likelihood = jnp.swapaxes(cumulative[1], 0, 1)[xt]
        last = jnp.log(jnp.maximum(likelihood * jnp.asarray(P, jnp.float32), 1e-30))
        return jnp.where(t < 1.5 / 20, last, TRUE_LOGITS)

    sampler = SAMPLERS.build("d3pm_ancestral")
    tokens = np.asarray(jax.jit(lambda key: sample_tokens(sampler, denoise, chain, 20, (8,), key).tokens)(keys(4096)))
    mixed = P @ np.asarray(cumulative[-1])  # the gaussian chain is far from uniform after 20 steps
    tolerance = 0.02 if np.abs(mixed - chain.prior_probabilities()).max() < 0.01 else 0.2
    np.testing.assert_allclose(np.bincount(tokens.ravel(), minlength=4) / tokens.size, P, atol=tolerance)


def test_cached_logits_are_the_same_logits():
    """A network without time input is evaluated only after a change, with the same tokens."""
    args = (x0_posterior("mask"), process(), 200, (2,), keys(4))
    plain, cached = (sample_tokens(SAMPLERS.build(n), *args) for n in ("mdlm", "mdlm_cached"))
    np.testing.assert_array_equal(plain.tokens, cached.tokens)
    assert plain.nfe == 200
    assert 1 <= int(cached.nfe) <= 9  # at most the first evaluation and one per changed token


def test_the_mixture_path_follows_the_matrix_exponential():
    """With a known posterior and uniform noise, the chain has the marginals of the continuous-time process."""
    kind, p = process("uniform"), jnp.asarray(P)
    sampler = SAMPLERS.build("discrete_flow_euler")
    result = sample_tokens(sampler, x0_posterior("uniform"), kind, 100, (4,), keys(8192), return_trajectory=True)
    for index in (25, 50, 75):
        kept = float(kind.schedule.kept(1 - index / 100))
        shares = np.bincount(np.asarray(result.trajectory[index]).ravel(), minlength=4) / (4 * 8192)
        sigma = -np.log(kept)
        generator = sigma * (np.full((4, 4), 0.25) - np.eye(4))
        expected = np.asarray(p) @ scipy.linalg.expm(generator)
        np.testing.assert_allclose(shares, expected, atol=0.015)


@pytest.mark.parametrize("name", [*samplers_of("tokens"), *samplers_of("token_chain")])
def test_samples_depend_neither_on_the_split_nor_on_jit(name):
    kind = TokenChain(num_tokens=4, num_steps=5, kind="uniform") if name == "d3pm_ancestral" else process()
    logits = lambda xt, t: jnp.sin(jnp.arange(4.0) + xt[..., None])  # noqa: E731

    def run(index):
        key = BatchKey(jax.random.key(0), index, 4)
        return sample_tokens(SAMPLERS.build(name), logits, kind, 5, (3, 2), key).tokens

    whole = jax.jit(run)(jnp.arange(4))
    assert whole.shape == (4, 3, 2)
    assert np.all((whole >= 0) & (whole < 4))
    if name != "mdlm_cached":
        np.testing.assert_array_equal(whole, jnp.concatenate([run(jnp.arange(2)), run(jnp.arange(2, 4))]))


def test_token_schedules():
    t = np.linspace(0.01, 0.99, 9)
    for name in TOKEN_SCHEDULES:
        schedule = TOKEN_SCHEDULES.example(name)
        kept = np.asarray(schedule.kept(jnp.asarray(t)))
        assert np.all(np.diff(kept) < 0)
        np.testing.assert_allclose(kept[0], 1, atol=0.02)
        slope = (np.log(schedule.kept(jnp.asarray(t - 1e-3))) - np.log(schedule.kept(jnp.asarray(t + 1e-3)))) / 2e-3
        np.testing.assert_allclose(schedule.rate(jnp.asarray(t)), slope, rtol=0.02, atol=1e-3)


def test_impossible_samplers_are_refused():
    logits = x0_posterior("uniform")
    with pytest.raises(UserError, match="use sedd_analytic"):
        sample_tokens(SAMPLERS.build("mdlm"), logits, process("uniform"), 4, (2,), keys(2))
    with pytest.raises(UserError, match="use mdlm"):
        sample_tokens(SAMPLERS.build("d3pm_ancestral"), logits, process(), 4, (2,), keys(2))
    chain = TokenChain(num_tokens=4, num_steps=6)
    with pytest.raises(UserError, match="every step of its chain"):
        sample_tokens(SAMPLERS.build("d3pm_ancestral"), logits, chain, 4, (2,), keys(2))
    with pytest.raises(UserError, match="at least 1 step"):
        sample_tokens(SAMPLERS.build("mdlm"), logits, process(), 0, (2,), keys(2))


ENTROPY = -np.sum(P * np.log(P))


@pytest.mark.parametrize(("name", "noise"), [("mdlm", "mask"), ("sedd", "mask"), ("sedd", "uniform")])
def test_the_bound_of_a_perfect_model_is_the_entropy(name, noise):
    objective = OBJECTIVES.build({"name": name, "process": process(noise)})
    exact = x0_posterior(noise) if name == "mdlm" else score_logits(noise)
    values = jax.jit(lambda x0, key: objective.bound(exact, x0, key))(draws(40000), keys(40000))
    assert values.shape == (40000,)
    error = np.std(values) / 200
    assert error < 0.015 * ENTROPY
    np.testing.assert_allclose(np.mean(values), ENTROPY, atol=3 * error + 0.002)


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
def test_the_bound_of_a_perfect_d3pm_is_the_entropy(kind):
    objective = OBJECTIVES.build({"name": "d3pm", "process": TokenChain(num_tokens=4, num_steps=20, kind=kind)})
    arrival = jnp.swapaxes(jnp.asarray(objective.process.matrices[1][1]), 0, 1)  # q(x_1 | x0), by x_1

    def exact(xt, t):
        """The joint of eq. 4 already includes x_n, so p(x0) is exact; the last step needs p(x0 | x_1)."""
        last = jnp.log(jnp.maximum(arrival[xt] * jnp.asarray(P, jnp.float32), 1e-30))
        return jnp.where(jnp.reshape(t, (-1, 1, 1)) < 1.5 / 20, last, TRUE_LOGITS)

    values = objective.bound(exact, draws(40000), keys(40000))
    np.testing.assert_allclose(np.mean(values), ENTROPY, rtol=0.02)


def test_discrete_flow_bounds_nothing_and_says_so():
    objective = OBJECTIVES.build({"name": "discrete_flow", "process": process()})
    with pytest.raises(UserError, match="is not a bound on a likelihood"):
        objective.bound(x0_posterior("mask"), draws(4), keys(4))


def test_only_integers_are_tokens():
    objective = OBJECTIVES.build({"name": "mdlm", "process": process()})
    tokens = jnp.arange(4).reshape(1, 4)
    np.testing.assert_array_equal(objective.tokens({"data": tokens}), tokens)
    with pytest.raises(UserError, match="codec values"):
        objective.tokens({"data": tokens / 3})


def test_what_a_network_of_tokens_is_told_and_says():
    seen = {}

    def network(x, time):
        seen.update(x=x, time=time)
        return jnp.zeros((*x.shape, 5)) if x.ndim == 2 else jnp.zeros((*x.shape[:-1], 4))

    schedule, tokens = TOKEN_SCHEDULES.build("linear"), jnp.array([[0, 4, 2], [3, 1, 4]])[..., None, None]
    for told, expected in {"scaled_t": 500.0, "nothing": 0.0, "sigma": -np.log(1 - 0.999 * 0.5)}.items():
        parameterization = TokenProcess(told=told, schedule=schedule, sequences=True, num_tokens=4)
        logits = parameterization.denoiser(network)(tokens, jnp.float32(0.5))
        np.testing.assert_array_equal(seen["x"], tokens[..., 0, 0])
        np.testing.assert_allclose(seen["time"], [expected] * 2, rtol=1e-6)
        np.testing.assert_allclose(logits, np.full((2, 3, 1, 1, 4), np.log(0.25)), rtol=1e-6)
    assert TokenProcess(num_tokens=4).denoiser(network)(tokens, jnp.float32(0.5)).shape == (2, 3, 1, 1, 4)
    assert seen["x"].shape == (2, 3, 1, 5)
    with pytest.raises(UserError, match="told 'scaled_t' or 'nothing'"):
        TokenChain(told="sigma", num_tokens=4, num_steps=3).denoiser(network)(tokens, jnp.float32(0.5))


def test_ddit_reads_indices_and_one_hot_images_alike():
    one_hot = MODELS.build(
        {"name": "ddit", "hidden_size": 16, "depth": 2, "num_heads": 2}, image_size=3, image_channels=5
    )
    indices = one_hot.clone(length=9)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape),
        init_params(one_hot, jax.random.key(0)),
    )
    assert jax.tree.map(jnp.shape, init_params(indices, jax.random.key(0))) == jax.tree.map(jnp.shape, params)
    x, time = jax.random.randint(jax.random.key(2), (2, 9), 0, 5), jnp.array([0.1, 0.7])
    images = jax.nn.one_hot(x, 5).reshape(2, 3, 3, 5)
    by_index, by_image = (n.apply({"params": params}, y, time, {}) for n, y in ((indices, x), (one_hot, images)))
    np.testing.assert_allclose(by_index, by_image.reshape(2, 9, 5), atol=1e-5)
    assert example_inputs(indices, 3)[0].shape == (3, 9)
