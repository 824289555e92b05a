"""Orders of convergence of every deterministic sampler, measured on closed forms; the test prints the table.

`python -m tests.samplers.test_orders` writes docs/sampler_orders.md and docs/images/sampler_orders.png.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.samplers import SAMPLERS, sample
from diffusion_jax.schedulers import SCHEDULES, TimeGrid
from tests.samplers.closed_form import Gaussian, Mixture

STEPS = (48, 96, 192)  # whole steps of two and of three transitions
EXACT_THIRD = {"dpmpp_3m": "second_derivative", "dpm_solver_3m": "second_derivative"}
MEASURED = [
    name for name in SAMPLERS if SAMPLERS.example(name).order is not None and not SAMPLERS.example(name).stochastic
]
SPECS = {name: SAMPLERS.example(name) for name in MEASURED} | {
    f"{name} exact": SAMPLERS.build({"name": name, "second_derivative": "exact"}) for name in EXACT_THIRD
}
# Orders that show slowly: after a start of lower order, or where errors of two kinds change places.
TOLERANCE = {"dpm_solver_3s": 0.4, "dpmpp_3s": 0.3, "deis": 0.3, "lms": 0.3, "dpmpp_3m": 0.7, "dpm_solver_3m": 0.7}
TOLERANCE |= {"dpm_solver_3m exact": 0.3}


def errors(sampler, data):
    """Errors at sigma_min of EDM's schedule, started at 1.3 standard deviations of the prior."""
    schedule, found = SCHEDULES.build("edm"), []
    for steps in STEPS:
        grid = TimeGrid.from_times(schedule, np.linspace(1, 0, steps + 1), to_clean=False)
        x = sample(sampler, data.denoiser(schedule), grid, jnp.array([1.3])).x0[0]
        found.append(abs(float(x) - exact_end(data, schedule, grid)))
    return np.array(found)


def exact_end(data, schedule, grid):
    """Where the flow ends: in closed form, and for the mixture as a quantile of its marginals."""
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
        if isinstance(data, Gaussian) and name not in ("ipndm", "pndm"):  # those two may do better than they promise
            assert np.mean(orders(found)) < SPECS[name].order + TOLERANCE.get(name, 0.15)


def test_published_orders():
    published = {"euler": 1, "ddim": 1, "flow_euler": 1, "heun": 2, "dpm2": 2, "dpmpp_2m": 2, "deis": 3, "lms": 4}
    assert {name: SAMPLERS.example(name).order for name in published} == published


def main():
    """Write the table and the plot for the docs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    jax.config.update("jax_enable_x64", True)
    lines = [
        "# Orders of convergence",
        "",
        "Errors at sigma_min of EDM's schedule after 48, 96 and 192 steps equal in t, from 1.3 standard deviations of",
        "the prior, for data N(0.3, 0.5²) and the mixture 0.3 N(-1, 0.2²) + 0.7 N(0.8, 0.35²), in float64. An order is",
        "half of log2 of the ratio of the first and the last error. This page is written by",
        "`python -m tests.samplers.test_orders`.",
        "",
        "| sampler | order | errors (Gaussian) | measured, Gaussian | measured, mixture |",
        "|---|---|---|---|---|",
    ]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    for index, (name, sampler) in enumerate(SPECS.items()):
        line = "--" if "exact" in name else "-"
        style = {"color": plt.cm.tab20(index % 20), "marker": "o.sv^"[index % 5], "markersize": 4, "linestyle": line}
        both = [errors(sampler, data) for data in (Gaussian(), Mixture())]
        for axis, found in zip(axes, both, strict=True):
            axis.loglog(STEPS, found, label=name, **style)
        first, second = (np.mean(orders(found)) for found in both)
        cells = ", ".join(f"{value:.1e}" for value in both[0])
        lines.append(f"| {name} | {sampler.order} | {cells} | {first:.2f} | {second:.2f} |")
    for axis, title in zip(axes, ("Gaussian", "mixture"), strict=True):
        axis.set(title=f"{title}: error at sigma_min", xlabel="steps", xticks=STEPS, xticklabels=STEPS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    docs = Path(__file__).parents[2] / "docs"
    (docs / "images").mkdir(exist_ok=True)
    figure.savefig(docs / "images" / "sampler_orders.png", dpi=110)
    lines += ["", "![errors against steps](images/sampler_orders.png)", ""]
    (docs / "sampler_orders.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
