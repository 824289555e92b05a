"""The cost of a sampler per step besides the network, in units of one elementwise pass over the state.

    python -m benchmarks.samplers [--samplers=heun,dpmpp_2m] [--shape=64,32,32,4] [--json=costs.json]

The network is the identity, so that only the sampler's own arithmetic remains: its combinations of states and its
noise. The unit is a compiled x -> a x + b, called by itself. Sampler and unit are measured in turn, round by round; the
figure is the smallest over the rounds of each. (Inside a loop, in place and in the cache, such a pass is a few times
faster; the title of the table gives that figure too.) The table also shows the seconds to compile for 10 and for 100
steps, which are equal if no step is unrolled. Exit code 1 if a sampler costs more than --limit passes per step. A step
of rk45 is one of its network evaluations, since rk45 itself decides how many it makes.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
SAMPLERS_FLAG = FLAGS.strings("samplers", [], "samplers to measure; a wrong name lists them; by default all")
SHAPE = FLAGS.strings(
    "shape",
    ["64", "32", "32", "4"],
    "shape of the state, with the batch first",
    check=cli.number_text(1, 2**16),
    allowed="whole numbers from 1 to 65,536 with commas between them",
)
ROUNDS = FLAGS.integer("rounds", 5, "measurements of each; the smallest counts", lower=1, upper=10_000)
LIMIT = FLAGS.number("limit", 12.0, "the most passes that a step may cost", lower=0, upper=1e6)
JSON = FLAGS.path("json", None, "also write the table to this file")
cli.begin(FLAGS)

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from diffusion_jax.registry import unknown_name
from diffusion_jax.rng import BatchKey
from diffusion_jax.samplers import SAMPLERS, sample, samplers_of
from diffusion_jax.schedulers import GRIDS, SCHEDULES, Prediction
from experiments.reports.tables import Table

MOST_NUMBERS = 2**28  # in the state
SHORT, LONG = 20, 120  # the cost of a step is the slope between these numbers of steps


@dataclasses.dataclass(frozen=True)
class Cost:
    """One row: passes and milliseconds per step, evaluations of the network per step, seconds to compile.

    A step of rk45 is one of the solver's evaluations.
    """

    sampler: str
    passes: float
    milliseconds: float
    evaluations_per_step: float
    compile_10: float
    compile_100: float


def identity(xt: jax.Array, t: jax.Array, *s: jax.Array) -> Prediction:
    """The network, which is the identity."""
    return Prediction(x0=xt, noise=xt)


def program(name: str, num_steps: int, shape: tuple[int, ...]) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Sampling with the identity network, from noise to (samples, evaluations)."""
    sampler = SAMPLERS.build(name)
    for schedule in ("edm", "rectified_flow"):
        grid = GRIDS.build("uniform")(SCHEDULES.build(schedule), num_steps)
        try:
            sampler.constants(grid)
            break
        except UserError:
            continue
    keys = BatchKey.create(jax.random.key(0), shape[0])

    def run(noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        result = sample(sampler, identity, grid, noise, keys)
        return result.x0, jnp.asarray(result.nfe)

    return run


def one_pass(x: jax.Array) -> jax.Array:
    """The unit of cost: one elementwise pass."""
    return 0.99 * x + 0.01


def passes_in_a_loop(num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The elementwise pass as the body of a scan."""
    numbers = jnp.linspace(0.98, 0.99, num_steps)
    return lambda x: jax.lax.scan(lambda x, a: (a * x + 0.01, None), x, numbers)[0]


def compiled(function: Callable, x: jax.Array) -> tuple[Callable, float]:
    """The compiled program, and the seconds to trace and compile it."""
    start = time.perf_counter()
    ready = jax.jit(function).lower(x).compile()
    return ready, time.perf_counter() - start


def seconds(function: Callable, x: jax.Array) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(x))
    return time.perf_counter() - start


def measure(name: str, shape: tuple[int, ...], rounds: int) -> Cost:
    """Measure one sampler against the elementwise pass."""
    x = jax.random.normal(jax.random.key(1), shape)
    runs = {n: compiled(program(name, n, shape), x)[0] for n in (SHORT, LONG)}
    unit_run = compiled(one_pass, x)[0]
    for function in (*runs.values(), unit_run):
        jax.block_until_ready(function(x))
    least = {SHORT: float("inf"), LONG: float("inf"), "unit": float("inf")}
    for _ in range(rounds):
        for n, function in runs.items():
            least[n] = min(least[n], seconds(function, x))
        least["unit"] = min(least["unit"], *(seconds(unit_run, x) for _ in range(50)))
    evaluations = {n: int(runs[n](x)[1]) for n in (SHORT, LONG)}
    per = evaluations[LONG] - evaluations[SHORT] if name == "rk45" else LONG - SHORT
    step, unit = (least[LONG] - least[SHORT]) / per, least["unit"]
    compile_times = [compiled(program(name, n, shape), x)[1] for n in (10, 100)]
    return Cost(
        sampler=name,
        passes=step / unit,
        milliseconds=1e3 * step,
        evaluations_per_step=(evaluations[LONG] - evaluations[SHORT]) / per,
        compile_10=compile_times[0],
        compile_100=compile_times[1],
    )


def main(_: list[str]) -> None:
    """Measure all samplers, print the table, and compare with the limit."""
    jax.config.update("jax_enable_compilation_cache", False)
    shape = tuple(int(length) for length in SHAPE.value)
    if math.prod(shape) > MOST_NUMBERS:
        raise UserError(f"--shape wants {MOST_NUMBERS:,} numbers at most, got {'x'.join(SHAPE.value)}")
    if JSON.value:
        cli.writable_directory(Path(JSON.value).parent)
    names = SAMPLERS_FLAG.value or samplers_of("gaussian")
    for name in names:
        if name not in SAMPLERS or SAMPLERS.example(name).process_kind != "gaussian":
            raise UserError(unknown_name("sampler of numbers", name, samplers_of("gaussian")))
    costs = [measure(name, shape, ROUNDS.value) for name in track(names, "measuring", console=Console(stderr=True))]

    slow = [cost for cost in costs if cost.passes > LIMIT.value]
    x = jnp.ones(shape)
    short, long = (compiled(passes_in_a_loop(n), x)[0] for n in (SHORT, LONG))
    in_loop = min(seconds(long, x) for _ in range(10)) - min(seconds(short, x) for _ in range(10))
    unit = costs[0].milliseconds / costs[0].passes
    title = f"cost per step at {'x'.join(map(str, shape))} on {jax.devices()[0].device_kind}; "
    title += f"a pass takes {unit:.3f} ms, inside a loop {1e3 * in_loop / (LONG - SHORT):.3f} ms"
    lines, numbers = [], ("passes", "ms", "NFE", "compile 10", "compile 100")
    for cost in sorted(costs, key=lambda cost: cost.passes):
        over = " !" if cost in slow else ""
        step = (f"{cost.passes:.2f}{over}", f"{cost.milliseconds:.3f}", f"{cost.evaluations_per_step:.1f}")
        lines.append((cost.sampler, *step, f"{cost.compile_10:.2f} s", f"{cost.compile_100:.2f} s"))
    Table.of(("sampler", *numbers), lines, numbers=numbers, title=title).print()
    if JSON.value:
        replace_file(JSON.value, json.dumps([dataclasses.asdict(cost) for cost in costs], indent=1).encode())
    if slow:
        print(f"over {LIMIT.value} passes: {', '.join(cost.sampler for cost in slow)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
