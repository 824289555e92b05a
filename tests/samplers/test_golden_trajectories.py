"""All intermediate states, compared with the schedulers of diffusers 0.42.1 on a mixture in the plane.

`tests/golden/samplers/*.npz` hold the float32 trajectories of the schedulers named here. diffusers rounds grid times to
its table, and uses unscaled noise levels for k-diffusion's samplers; this file states both explicitly.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Prediction, TimeGrid

pytestmark = pytest.mark.usefixtures("x64")
GOLDEN = Path(__file__).parent.parent / "golden" / "samplers"
SD = "scaled_linear"


def steps(indices, *, to_clean=True):
    """The grid through discrete steps n of 1000."""
    return lambda schedule: TimeGrid.from_times(schedule, (np.asarray(indices) + 1) / 1000, to_clean=to_clean)


def times(values):
    return lambda schedule: TimeGrid.from_times(schedule, values)


def grid(name):
    return lambda schedule: GRIDS.build(name)(schedule, 10)


def shift(t):
    return 3 * t / (1 + 2 * t)


def rule(name, num_steps=10, **options):
    return lambda schedule: GRIDS.build({"name": name, **options})(schedule, num_steps)


LINSPACE = np.linspace(999, 0, 10)
LEADING, TRAILING = np.arange(900, -1, -100), np.arange(999, -1, -100)
FINAL = {"lower_order_final": True}

# trajectory: schedule, grid, sampler
CASES = {
    "ddim_linear": ("ddpm_linear", steps(LEADING, to_clean=False), "ddim"),
    "ddim_trailing_v": (SD, steps(TRAILING), "ddim"),
    "ddim_zsnr_v": ({"name": "zero_terminal_snr", "base": SD}, steps(TRAILING), "ddim"),
    "euler_sd": (SD, steps(LINSPACE), "euler"),
    "euler_karras": (SD, grid("karras"), "euler"),
    "heun_karras": (SD, grid("karras"), "heun"),
    "dpmpp_2m": (SD, rule("dpm_linspace"), {"name": "dpmpp_2m", **FINAL}),
    "dpmpp_2m_karras": (SD, grid("karras"), {"name": "dpmpp_2m", **FINAL}),
    "dpmpp_3m": (SD, rule("dpm_linspace"), {"name": "dpmpp_3m", **FINAL}),
    "dpm_2m_eps": (SD, rule("dpm_linspace", to_clean=False), {"name": "dpm_solver_2m", **FINAL}),
    "dpmpp_2s": (SD, rule("dpm_linspace"), "dpmpp_2s"),
    "unipc_bh2": (SD, rule("dpm_linspace"), {"name": "unipc", **FINAL}),
    "deis": (SD, rule("dpm_linspace", to_clean=False), {"name": "deis", "solver_order": 2, **FINAL}),
    "lms": (SD, steps(LINSPACE), "lms"),
    "pndm": (SD, steps(LEADING, to_clean=False), "pndm"),
    "flow_euler": ("rectified_flow", times(np.linspace(1, 0.001, 10)), "flow_euler"),
    "flow_euler_shift3": ("rectified_flow", times(shift(np.linspace(1, shift(0.001), 10))), "flow_euler"),
    "flow_heun": ("rectified_flow", times(np.linspace(1, 0.001, 10)), "flow_heun"),
    "edm_euler": ("edm", grid("uniform"), "euler"),
    "edm_dpmpp_2m": ("edm", grid("uniform"), {"name": "dpmpp_2m", **FINAL}),
}
UNSCALED = {"euler_sd", "euler_karras", "heun_karras", "lms"}  # states are xt / alpha
TWICE = {"heun_karras", "flow_heun"}  # these have an extra state between grid points


def mixture_denoiser(golden, schedule):
    """E[x0 | xt] of a mixture of isotropic Gaussians in the plane."""
    means, stds, weights = (golden[name].astype(np.float64) for name in ("means", "stds", "weights"))

    def denoise(xt, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variances = (alpha * stds) ** 2 + sigma**2
        residuals = xt[:, None] - alpha * means
        logits = jnp.log(weights) - jnp.log(variances) - 0.5 * jnp.sum(residuals**2, -1) / variances
        shares = jax.nn.softmax(logits)[..., None] / variances[:, None]
        x0 = jnp.sum(shares * (variances[:, None] * means + (alpha * stds**2)[:, None] * residuals), 1)
        return Prediction(x0=x0, noise=sigma * jnp.sum(shares * residuals, 1))

    return denoise


def reference_states(name, golden):
    """The reference trajectory at the points of the grid."""
    states = golden["trajectory"].astype(np.float64)
    if name in TWICE:
        return np.concatenate([states[:1], states[2::2], states[-1:]])
    if name == "pndm":
        return np.delete(states, 1, axis=0)  # the first try at the first transition
    return states


def run(name):
    """(reference, found, grid), with the states at the points of the grid."""
    spec, make_grid, sampler = CASES[name]
    golden = np.load(GOLDEN / f"{name}.npz")
    schedule = SCHEDULES.build(spec)
    points = make_grid(schedule)
    reference = reference_states(name, golden)
    scale = points.alphas[:, None, None] if name in UNSCALED else np.ones((1, 1, 1))
    start = reference[0] * scale[0]
    denoiser = mixture_denoiser(golden, schedule)
    noise = jnp.asarray(start / schedule.prior_std)
    found = sample(SAMPLERS.build(sampler), denoiser, points, noise, return_trajectory=True).trajectory
    return reference, np.asarray(found) / scale, points


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_state(name):
    reference, found, points = run(name)
    if name in ("ddim_linear", "pndm"):  # the last step of diffusers stays at the first noise level
        assert len(reference) == len(found) + 1
        np.testing.assert_allclose(reference[-1], reference[-2], atol=2e-4 if name == "ddim_linear" else 1)
        reference = reference[:-1]
    assert len(reference) == len(found) == points.num_steps + 1
    np.testing.assert_allclose(found, reference, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_grid(name):
    """Times and noise levels equal those that the scheduler visits."""
    golden = np.load(GOLDEN / f"{name}.npz")
    spec, make_grid, _ = CASES[name]
    points = make_grid(SCHEDULES.build(spec))
    visits = slice(None)
    if name in TWICE:
        visits = np.r_[0, 1 : len(golden["alphas"]) : 2]
    elif name == "pndm":
        visits = np.r_[0, 2 : len(golden["alphas"])]
    alphas, sigmas = golden["alphas"][visits], golden["sigmas"][visits]
    count = points.num_steps + (0 if points.ends_clean else 1)
    count = min(count, len(alphas))
    np.testing.assert_allclose(points.alphas[:count], alphas[:count], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(points.sigmas[:count], sigmas[:count], rtol=1e-5, atol=2e-6)
