"""Every objective family on two moons, on one page: training, sampling, and a drawing of the paths from noise to data.

    python docs/examples/two_moons.py [--steps=2000] [--out=two_moons.png] [--only=EDM,MeanFlow]

Each entry of FAMILIES is a whole recipe: an objective with its schedule, the prediction of the network, and a matching
sampler. All recipes train the same small network on the same points; distillation starts and learns from the network of
the first recipe. The picture has one panel per recipe with 1,000 samples, the data in grey behind them, and the paths
of 40 samples from noise to data. The token recipes (D3PM, MDLM, SEDD, discrete flow matching) use the same points on a
grid of 32 x 32 cells, two tokens per point. Each title gives the sliced Wasserstein distance to the data and the number
of network evaluations below it.
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from rich.progress import track
from sklearn.datasets import make_moons

from diffusion_jax import models, training
from diffusion_jax.models.autoencoders import Identity, Values
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.rng import BatchKey, stream_key
from diffusion_jax.samplers import SAMPLERS, sample, sample_tokens
from diffusion_jax.schedulers import (
    GRIDS,
    PROCESSES,
    TIME_SAMPLERS,
    Parameterization,
)
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model

matplotlib.use("agg")
import matplotlib.pyplot as plt

BATCH, SAMPLES, PATHS, CELLS = 512, 1000, 40, 32
FLOW = {"schedule": "rectified_flow", "prediction": "velocity", "time_input": {"name": "scaled_t", "scale": 100.0}}
SMOOTH = {"name": "scaled_t", "scale": 5.0}  # for losses with derivatives in t, which high frequencies make noisy
TRIG = {"schedule": "trigflow", "prediction": "v", "time_input": SMOOTH}
TABLE = {"schedule": "cosine", "prediction": "epsilon", "time_input": {"name": "scaled_t", "scale": 100.0}}
TABLE |= {"time_sampler": "discrete_uniform"}
JUMPS = {"prediction": "consistency", "sampler": "consistency", "grid": "trailing", "steps": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A recipe: the objective, and the way samples are drawn."""

    title: str
    objective: str | Mapping[str, Any]
    schedule: str = "edm"
    prediction: str = "edm"
    time_input: str | Mapping[str, Any] = "quarter_log_sigma"
    time_sampler: str | Mapping[str, Any] = "log_normal"
    tokens: Mapping[str, Any] | None = None  # a token process instead of schedule, prediction and time input
    sampler: str | Mapping[str, Any] = "heun"
    grid: str = "uniform"
    steps: int = 18
    taught: bool = False  # learns from the first family's network
    starts_from_teacher: bool = False
    learning_rate: float = 1e-3


def recipe(name: str, **options: Any) -> dict[str, Any]:
    """An objective with options."""
    return {"name": name, **options}


def families(total_steps: int) -> list[Family]:
    """All recipes; some curricula depend on the length of training."""
    flow_map = {**FLOW, "time_input": SMOOTH, "sampler": "flow_map"}
    moved = {**FLOW, "time_sampler": {"name": "uniform", "uniforms": "low_discrepancy"}}
    ct = recipe("consistency_training", last=40, total_steps=total_steps)
    pd = recipe("progressive_distillation", num_steps=8, weighting={"name": "edm", "sigma_data": 0.5})
    tokens = {"name": "tokens", "num_tokens": CELLS}
    ict = recipe("ict", last=160, total_steps=total_steps)
    ect = recipe("ect", doubling=max(1, total_steps // 6))
    scm, scd = (recipe(name, warmup=total_steps // 3) for name in ("scm", "scd"))
    angle = {**TRIG, "time_sampler": {"name": "log_normal", "mean": -1.0, "std": 1.4}, "sampler": "scm", "steps": 2}
    late = {"name": "logit_normal", "mean": 0.8, "std": 0.8}
    # MeanFlow's sampler makes one jump from t = 1 to s = 0, so a short training must see these times often enough.
    # p = 0 is the plain mean square; the adaptive weight suits many dimensions, where all errors have a similar size.
    mean_times = {"name": "uniform", "uniforms": "low_discrepancy"}
    chain = {"name": "token_chain", "num_tokens": CELLS, "num_steps": 64}
    vdm_times = {"name": "uniform", "t_min": 0.0, "uniforms": "low_discrepancy"}
    start = {"taught": True, "starts_from_teacher": True}
    return [
        Family(title="EDM", objective="denoising"),
        Family(title="DDPM", objective="denoising", sampler="ddpm", steps=100, **TABLE),
        Family(
            title="v, Min-SNR, DPM++ 2M",
            objective=recipe("denoising", weighting="min_snr"),
            **{**TABLE, "prediction": "v"},
            sampler="dpmpp_2m",
            steps=20,
        ),
        Family(
            title="hybrid, learned variance",
            objective=recipe("hybrid", bins=256),
            **TABLE,
            sampler={"name": "ddpm", "variance": "learned"},
            steps=100,
        ),
        Family(
            title="VDM, learned schedule",
            objective=recipe("vdm", learned=True, bins=256),
            schedule="vdm_linear",
            prediction="epsilon",
            time_sampler=vdm_times,
            sampler="ddpm",
            steps=100,
        ),
        Family(title="flow matching", objective="flow_matching", sampler="flow_heun", **moved),
        Family(
            title="interpolant, SDE",
            objective="stochastic_interpolant",
            **{**moved, "schedule": "gvp"},
            sampler="sit_sde",
            steps=100,
        ),
        Family(
            title="JiT",
            objective="jit",
            **{**FLOW, "prediction": "x0", "time_sampler": late},
            sampler="flow_heun",
        ),
        Family(title="reflow", objective="reflow", sampler="flow_euler", steps=4, taught=True, **moved),
        Family(title="consistency training", objective=ct, **JUMPS),
        Family(title="iCT", objective=ict, **JUMPS),
        Family(title="ECT", objective=ect, **JUMPS, **start),
        Family(title="consistency distillation", objective="consistency_distillation", **JUMPS, **start),
        Family(title="sCM", objective=scm, learning_rate=5e-4, **angle),
        Family(title="sCM distillation", objective=scd, learning_rate=5e-4, taught=True, **angle),
        Family(title="progressive distillation", objective=pd, sampler="ddim", grid="trailing", steps=8, **start),
        Family(title="shortcut", objective=recipe("shortcut", decay=0.99), steps=4, **flow_map),
        Family(
            title="MeanFlow",
            objective=recipe("meanflow", p=0.0, instantaneous=0.5),
            steps=1,
            time_sampler=mean_times,
            **flow_map,
        ),
        Family(
            title="D3PM",
            objective=recipe("d3pm", cross_entropy_weight=0.1),
            tokens=chain,
            sampler="d3pm_ancestral",
            steps=64,
        ),
        Family(title="MDLM", objective="mdlm", tokens=tokens, sampler="mdlm", steps=64),
        Family(title="SEDD", objective="sedd", tokens=tokens, sampler="sedd_analytic", steps=64),
        Family(
            title="discrete flow matching",
            objective="discrete_flow",
            tokens={**tokens, "noise": "uniform"},
            sampler="discrete_flow_euler",
            steps=64,
        ),
    ]


def moons(size: int, seed: int) -> np.ndarray:
    """Points with mean 0 and standard deviation 1/2, in the form of one-pixel images with two channels."""
    points, _ = make_moons(size, noise=0.06, random_state=seed)
    points = (points - [0.5, 0.25]) / [0.87, 0.5] * 0.5
    return np.clip(points, -0.999, 0.999).astype(np.float32).reshape(-1, 1, 1, 2)


def trainable_of(family: Family, teacher: training.Trainable | None) -> training.Trainable:
    """The network, the meaning of its output, and the loss."""
    if family.tokens:
        process = dataclasses.replace(PROCESSES.build(family.tokens), told="scaled_t", scale=100.0)
        objective = OBJECTIVES.build(family.objective, process=process)
        channels, out = process.channels(2)
    else:
        process = Parameterization.build(
            schedule=family.schedule, prediction=family.prediction, time_input=family.time_input
        )
        objective = OBJECTIVES.build(
            family.objective,
            schedule=process.schedule,
            prediction=process.prediction,
            time_sampler=TIME_SAMPLERS.build(family.time_sampler),
        )
        channels, out = 2, 4 if "hybrid" in family.title else 2
    network = models.MODELS.build(
        "mlp", image_size=1, image_channels=channels, out_channels=out, num_times=objective.num_times
    )
    model = Model(
        data=DataSpec(kind="pixels", shape=(1, 1, 2)),
        codec=Values(num_values=process.num_tokens) if process.discrete else Identity(),
        network=network,
        process=process,
    )
    return training.Trainable(model=model, objective=objective, teacher=teacher.model if family.taught else None)


def train(trainable: training.Trainable, family: Family, steps: int, teacher_params: Any) -> Any:
    """The averaged parameters after training."""
    ema = training.EmaConfig(decays=(0.998,), half_lives=(), ramp_up_ratio=0.05)
    schedule = optax.cosine_decay_schedule(family.learning_rate, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def copied(params: Any) -> Any:  # the step below donates its state's memory
        return jax.tree.map(jnp.copy, params)

    def begin() -> training.TrainState:
        own = trainable.init_params(stream_key(0, "init"), models.init_params)
        if family.starts_from_teacher:
            own = {**own, **copied(teacher_params)}
        objective = trainable.objective
        return training.create_state(
            lambda: own,
            optimizer,
            ema,
            with_target="target" in objective.needs,
            teacher=copied(teacher_params) if trainable.teacher else None,
            objective_state=objective.init_state(),
        )

    step = training.make_train_step(trainable, optimizer, ema=ema, learning_rate=schedule, batch_size=BATCH, seed=0)
    data = jnp.asarray(moons(20_000, seed=0))

    def many(state: training.TrainState, indices: jax.Array) -> training.TrainState:
        return jax.lax.scan(lambda state, rows: (step(state, {"data": data[rows]})[0], None), state, indices)[0]

    many = jax.jit(many, donate_argnums=0)
    rows, state = np.random.default_rng(0), begin()
    for _ in track(range(0, steps, 100), description=f"{family.title:28}"):
        state = many(state, rows.integers(0, len(data), (100, BATCH)))
    return state.evaluation_params()


def draw(trainable: training.Trainable, family: Family, params: Any) -> tuple[np.ndarray, int]:
    """The states on the path [points, samples, 2], and the number of network evaluations."""
    key, shape = BatchKey.create(stream_key(1, "sample"), SAMPLES), (1, 1, 2)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, jax.Array]:
        denoiser, objective = trainable.denoiser(params, {}), trainable.objective
        if objective.discrete:
            sampler = SAMPLERS.build(family.sampler)
            found = sample_tokens(
                sampler, denoiser, objective.process, family.steps, shape, key, return_trajectory=True
            )
            path = trainable.model.decode(params, found.trajectory)
            jitter = (2.0 / CELLS) * (key.uniforms(shape) - 0.5)
            return path + jitter, jnp.asarray(found.nfe)
        schedule = trainable.model.process.schedule
        grid = GRIDS.build(family.grid)(schedule, family.steps)
        # At t = 1 hardly any signal is left, so an error in the predicted noise is thousands in x0.
        clip = (lambda x0: jnp.clip(x0, -1.0, 1.0)) if family.prediction == "epsilon" else None
        found = sample(
            SAMPLERS.build(family.sampler), denoiser, grid, shape, key, x0_transform=clip, return_trajectory=True
        )
        scale = jnp.hypot(grid.alphas, grid.sigmas).reshape(-1, 1, 1, 1, 1)  # noise and data on one scale
        return found.trajectory / scale, jnp.asarray(found.nfe)

    path, evaluations = run(params)
    return np.asarray(path).reshape(path.shape[0], SAMPLES, 2), int(evaluations)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 64) -> float:
    """The mean over directions of the one-dimensional 1-Wasserstein distance of equally many points."""
    angles = np.pi * np.arange(directions) / directions
    axes = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.mean(np.abs(np.sort(a @ axes, axis=0) - np.sort(b @ axes, axis=0))))


def panel(axis: plt.Axes, path: np.ndarray, data: np.ndarray, title: str) -> None:
    """Draw the data in grey, samples in blue, and paths in orange."""
    axis.scatter(*data.T, s=2, color="0.8", linewidths=0)
    keep = path if len(path) < 70 else path[:: len(path) // 64]
    for one in range(PATHS):
        line = np.concatenate([keep[:, one], path[-1:, one]])
        axis.plot(*line.T, color="tab:orange", linewidth=0.4, alpha=0.6)
    axis.scatter(*path[-1].T, s=2, color="tab:blue", linewidths=0)
    axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=9)


def main() -> None:
    """Train all recipes and draw the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps for each family")
    parser.add_argument("--out", default="two_moons.png", help="the picture")
    parser.add_argument("--only", default="", help="titles, with commas between; the first family is always trained")
    options = parser.parse_args()

    chosen = families(options.steps)
    if options.only:
        wanted = options.only.split(",")
        unknown = set(wanted) - {family.title for family in chosen}
        if unknown:
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(f.title for f in chosen)}")
        chosen = [family for family in chosen if family.title in ("EDM", *wanted)]
    data = moons(SAMPLES, seed=1).reshape(-1, 2)
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.2 * columns, 2.5 * rows), squeeze=False, constrained_layout=True
    )
    teacher, teacher_params, begin = None, None, time.perf_counter()
    for family, axis in zip(chosen, axes.flat, strict=False):
        trainable = trainable_of(family, teacher)
        params = train(trainable, family, options.steps, teacher_params)
        if teacher is None:
            teacher, teacher_params = trainable, params
        path, evaluations = draw(trainable, family, params)
        distance = sliced_wasserstein(path[-1], data)
        panel(axis, path, data, f"{family.title}\n{distance:.3f}, {evaluations} NFE")
        print(f"{family.title:28} sliced Wasserstein {distance:.3f}, {evaluations} NFE", flush=True)
    for axis in axes.flat[len(chosen) :]:
        axis.axis("off")
    again = moons(SAMPLES, seed=2).reshape(-1, 2)
    figure.suptitle(f"two moons; two sets of real points are {sliced_wasserstein(again, data):.3f} apart", fontsize=10)
    figure.savefig(options.out, dpi=120)
    print(f"{options.out}, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
