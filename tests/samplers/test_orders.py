"""Orders of convergence of every deterministic sampler, measured on closed forms; the test prints the table.

`python -m tests.samplers.test_orders` writes docs/sampler_orders.md and docs/images/sampler_orders.png.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.samplers import SAMPLERS, evaluation_times, sample, samplers_of
from diffusion_jax.schedulers import GRIDS, SCHEDULES, TimeGrid
from tests.samplers.closed_form import Gaussian, Mixture

STEPS = (48, 96, 192)  # divisible into steps of two and of three transitions
EXACT_THIRD = {"dpmpp_3m": "second_derivative", "dpm_solver_3m": "second_derivative"}
MEASURED = [
    name
    for name in samplers_of("gaussian")
    if SAMPLERS.example(name).order is not None and not SAMPLERS.example(name).stochastic
]
SPECS = {name: SAMPLERS.example(name) for name in MEASURED} | {
    f"{name} exact": SAMPLERS.build({"name": name, "second_derivative": "exact"}) for name in EXACT_THIRD
}
# Orders that appear slowly: after a start of lower order, or where two kinds of errors compete.
TOLERANCE = {"dpm_solver_3s": 0.4, "dpmpp_3s": 0.3, "deis": 0.3, "lms": 0.3, "dpmpp_3m": 0.7, "dpm_solver_3m": 0.7}
TOLERANCE |= {"dpm_solver_3m exact": 0.3}


# The schedules, and their ranges of t: down to sigma_min on edm; elsewhere as far as equal steps in t remain short in
# log-SNR, the variable in which some solvers step.
KINDS = {"edm": (1.0, 0.0), "vp_sde": (1.0, 0.05), "rectified_flow": (0.95, 0.05)}


def errors(sampler, data, kind="edm", step_counts=STEPS):
    """The errors at the end of the range, starting at 1.3 standard deviations of the prior."""
    schedule, found = SCHEDULES.build(kind), []
    for steps in step_counts:
        grid = TimeGrid.from_times(schedule, np.linspace(*KINDS[kind], steps + 1), to_clean=False)
        x = sample(sampler, data.denoiser(schedule), grid, jnp.array([1.3])).x0[0]
        found.append(abs(float(x) - exact_end(data, schedule, grid)))
    return np.array(found)


def exact_end(data, schedule, grid):
    """The end of the flow: in closed form, or for the mixture as a quantile of its marginals."""
    x_1 = 1.3 * schedule.prior_std
    return data.flow(schedule, x_1, grid)


def orders(errors_found):
    return np.log2(errors_found[:-1] / errors_found[1:])


@pytest.mark.parametrize("data", [Gaussian(), Mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", list(SPECS))
def test_order_of_convergence(name, data, x64, capsys):
    found = errors(SPECS[name], data)
    with capsys.disabled():
        print(
            f"\n{name:20} {type(data).__name__:9} order {SPECS[name].order}: measured {orders(found).round(2)}", end=""
        )
    floor = 1e-13
    if found[-1] > floor:
        lowest = SPECS[name].order - TOLERANCE.get(name, 0.15)
        assert np.mean(orders(found)) > lowest
        if isinstance(data, Gaussian) and name not in ("ipndm", "pndm"):  # these two may exceed their stated order
            assert np.mean(orders(found)) < SPECS[name].order + TOLERANCE.get(name, 0.15)


FLOW_STEPS = (96, 192, 384)
STARTS = {"deis": 3, "lms": 4, "dpmpp_3m exact": 3}


@pytest.mark.parametrize("data", [Gaussian(), Mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", list(STARTS))
def test_a_start_of_high_order_gives_the_order_where_the_published_start_does_not(name, data, x64):
    """On rectified_flow a low-order start reduces the overall order to 2; a high-order start preserves the sampler's
    order."""
    published, raised = (
        errors(dataclasses.replace(SPECS[name], start=start), data, "rectified_flow", FLOW_STEPS)
        for start in ("lower_order", "runge_kutta")
    )
    assert orders(raised)[-1] > STARTS[name] - 0.45
    assert orders(published)[-1] < orders(raised)[-1] - 0.2
    assert np.all(raised < published)


@pytest.mark.parametrize("name", [*STARTS, "dpm_solver_3m exact"])
def test_evaluations_of_a_start_of_high_order(name):
    """A high-order start costs three more evaluations for each of its transitions: k in the x0 form, k - 1 in the noise
    form, none to clean data."""
    sampler, schedule = dataclasses.replace(SPECS[name], start="runge_kutta"), SCHEDULES.build("edm")
    started = sampler.memory - (sampler.predicts == "noise")
    for steps, ends_clean in ((1, True), (1, False), (3, True), (8, True)):
        grid = TimeGrid.from_times(schedule, np.linspace(1, 0.1, steps + (not ends_clean)), to_clean=ends_clean)
        expected = steps + 3 * min(started, steps - ends_clean)
        assert len(evaluation_times(sampler, grid)) == sampler.nfe(steps, ends_clean=ends_clean) == expected
    assert SPECS[name].nfe(8) == 8


def test_a_start_without_signal_is_finite_in_the_x0_form(x64):
    """The start is accurate at t = 1 of rectified_flow, where alpha is 0 and the log-SNR infinite."""
    schedule, data = SCHEDULES.build("rectified_flow"), Gaussian()
    found = []
    for steps in (24, 48):
        grid = TimeGrid.from_times(schedule, np.linspace(1, 0.05, steps + 1), to_clean=False)
        sampler = SAMPLERS.build({"name": "dpmpp_3m", "second_derivative": "exact", "start": "runge_kutta"})
        path = sample(sampler, data.denoiser(schedule), grid, jnp.array([1.3]), return_trajectory=True).trajectory
        third = TimeGrid.from_times(schedule, grid.times[:4], to_clean=False)
        found.append(abs(float(path[3, 0]) - data.flow(schedule, 1.3, third)))
    assert found[0] < 1e-6
    assert np.log2(found[0] / found[1]) > 4


def test_an_unknown_start_is_refused():
    for name in ("lms", "deis", "dpmpp_3m", "dpm_solver_3m"):
        with pytest.raises(UserError, match="'runge_kutta'"):
            SAMPLERS.build({"name": name, "start": "euler"})


@pytest.mark.parametrize("num_steps", [10, 20, 40])
def test_the_last_orders_of_unipc_fall_at_any_number_of_steps(num_steps):
    """UniPC lowers its last orders at any number of steps, as in the authors' code; DPM-Solvers only below 15."""
    grid = GRIDS.build({"name": "log_snr", "to_clean": False})(SCHEDULES.build("vp_sde"), num_steps)
    used = {}
    for name, options in (("unipc", {"solver_order": 3}), ("dpmpp_3m", {})):
        sampler = SAMPLERS.build({"name": name, "lower_order_final": True, **options})
        used[name] = np.count_nonzero(sampler.coefficients(grid).history, axis=1)
    np.testing.assert_array_equal(used["unipc"][[0, 1, 2, -4, -3, -2, -1]], [1, 2, 3, 3, 3, 2, 1])
    np.testing.assert_array_equal(used["dpmpp_3m"][-2:], [2, 1] if num_steps < 15 else [3, 3])


def test_published_orders():
    published = {"euler": 1, "ddim": 1, "flow_euler": 1, "heun": 2, "dpm2": 2, "dpmpp_2m": 2, "deis": 3, "lms": 4}
    assert {name: SAMPLERS.example(name).order for name in published} == published


PAGE_STEPS = {"edm": STEPS, "vp_sde": (192, 384, 768), "rectified_flow": FLOW_STEPS}
INTRODUCTION = """\
# Orders of convergence

Measured on closed forms, in float64: data N(0.3, 0.5²) and the mixture 0.3 N(-1, 0.2²) + 0.7 N(0.8, 0.35²), with their
exact denoisers, from 1.3 standard deviations of the prior, in steps equal in t, on one schedule of each kind:

- `edm` from t = 1 to 0, which is Karras's grid down to sigma_min, in 48, 96 and 192 steps;
- `vp_sde` from t = 1 to 0.05, in 192, 384 and 768 steps;
- `rectified_flow` from t = 0.95 to 0.05, in 96, 192 and 384 steps.

An order is half of log2 of the ratio of the first and the last error, of the Gaussian / of the mixture; one that is far
from its neighbour comes from an error that passes through zero. This page is written by
`python -m tests.samplers.test_orders`.

A multistep method of order 3 or 4 begins with steps of order 1 and 2. On Karras's grid these change almost nothing, and
the method shows its order; on rectified_flow they count like all others, and their error, of second order in the length
of a step, is what is left in the end. With `start="runge_kutta"` deis, lms, dpmpp_3m and dpm_solver_3m take them by
Runge-Kutta's method of fourth order instead, with 6 to 9 evaluations more. A dash: the sampler refuses the schedule, or
is at home on another.
"""
SHORTCUTS = """
## Shortcut models

A shortcut model is taught from its velocity up, jumps of d by jumps of d / 2, and so can be no better than M steps of
Euler, M = `base_steps`, however few steps it takes (`diffusion_jax/objectives/flow_map.py`). The distance of a perfect
one from the exact flow of N(0.3, 0.5²) on rectified_flow, from 1.3 standard deviations of the prior:
"""


def measured(name, kind):
    """The errors for the Gaussian and the mixture, or None if the sampler does not run."""
    sampler = SPECS[name]
    if name.startswith("flow_") and kind == "vp_sde":
        return None
    try:
        return [errors(sampler, data, kind, PAGE_STEPS[kind]) for data in (Gaussian(), Mixture())]
    except UserError:
        return None


def shortcut_lines():
    """The lines of a table with the error for each M."""
    rows = []
    for base_steps in (8, 16, 32, 64, 128, 256):
        grid = GRIDS.build("uniform")(SCHEDULES.build("rectified_flow"), base_steps)
        x0 = sample(SAMPLERS.build("flow_euler"), Gaussian().denoiser(grid.schedule), grid, jnp.array([1.3])).x0[0]
        rows.append((base_steps, abs(float(x0) - Gaussian().flow(grid.schedule, 1.3, grid))))
    return [
        "| M | " + " | ".join(str(base_steps) for base_steps, _ in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
        "| error | " + " | ".join(f"{error:.1e}" for _, error in rows) + " |",
    ]


def main():
    """Write the tables and the plot of the docs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    jax.config.update("jax_enable_x64", True)
    for name in STARTS:
        SPECS[f"{name}, runge_kutta"] = dataclasses.replace(SPECS[name], start="runge_kutta")
    lines = [INTRODUCTION, "| sampler | order | errors (edm, Gaussian) | " + " | ".join(KINDS) + " |", "|---" * 6 + "|"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    for index, (name, sampler) in enumerate(SPECS.items()):
        line = "-" if name in MEASURED else "--"
        style = {"color": plt.cm.tab20(index % 20), "marker": "o.sv^"[index % 5], "markersize": 4, "linestyle": line}
        found = {kind: measured(name, kind) for kind in KINDS}
        for axis, kind in zip(axes, ("edm", "rectified_flow"), strict=True):
            if found[kind]:
                axis.loglog(PAGE_STEPS[kind], found[kind][0], label=name, **style)
        cells = ", ".join(f"{value:.1e}" for value in found["edm"][0])
        order_cells = (
            " / ".join(f"{np.mean(orders(e)):.2f}" for e in pair) if pair else "-" for pair in found.values()
        )
        lines.append(f"| {name} | {sampler.order} | {cells} | {' | '.join(order_cells)} |")
    for axis, kind in zip(axes, ("edm", "rectified_flow"), strict=True):
        steps = PAGE_STEPS[kind]
        axis.set(title=f"{kind}: error for the Gaussian", xlabel="steps", xticks=steps, xticklabels=steps)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside right center")
    docs = Path(__file__).parents[2] / "docs"
    (docs / "images").mkdir(exist_ok=True)
    figure.savefig(docs / "images" / "sampler_orders.png", dpi=110)
    lines += ["", "![errors against steps](images/sampler_orders.png)", SHORTCUTS, *shortcut_lines(), ""]
    (docs / "sampler_orders.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
