"""The cost of networks: compile time against depth, and images per second against the machine's matrix products.

    python -m benchmarks.models                  # about 4 minutes on two cores
    python -m benchmarks.models --batch=64 --dtype=bfloat16

The first table compiles a DiT of depth 28 and one of depth 4. The blocks are one scan, so the ratio must stay below 1.3
(exit code 1 otherwise). The second table measures the forward pass and the train step (loss, gradient, Adam) of DiT-S/2
and of DDPM's CIFAR-10 U-Net, in images per second and in per cent of the best matrix product measured in the same run.
The third table measures the gradient of a small U-Net over four microbatches, with a loop and without one; training on
a CPU uses no loop.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
BATCH = FLAGS.integer("batch", 16, "images in a batch", lower=1, upper=2**16)
DTYPE = FLAGS.choice("dtype", "float32", ["float32", "bfloat16"], "type in which activations are computed")
ROUNDS = FLAGS.integer("rounds", 5, "timed calls of each; the median counts", lower=1, upper=10_000)
cli.begin(FLAGS)

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from diffusion_jax.models import MODELS, Network, count_flops, example_inputs, init_params, parameter_shapes
from experiments.reports.tables import Table

MICROBATCHES, IMAGES = 4, 32  # and images in each
SMALL = {"name": "unet", "image_size": 8, "image_channels": 1, "base_channels": 32, "channel_multipliers": (1, 2),
         "num_res_blocks": 1, "attention_resolutions": (4,)}  # fmt: skip
LIMIT = 1.3  # ratio of the compile time at depth 28 to that at depth 4
NETWORKS = {
    "DiT-S/2, 32x32x4": {"name": "dit", "size": "S/2", "image_size": 32, "image_channels": 4},
    "DDPM U-Net, 32x32x3": {"name": "unet", "image_size": 32, "image_channels": 3},
}


def forward(network: Network) -> Callable[..., jax.Array]:
    """The network as a function of parameters and inputs."""
    return lambda params, *inputs: network.apply({"params": params}, *inputs)


def train_step(network: Network) -> Callable[..., Any]:
    """One step of Adam on a squared error, (params, state, inputs) -> (params, state)."""
    optimizer = optax.adam(1e-4)

    def step(params, state, *inputs):
        gradient = jax.grad(lambda p: jnp.mean((forward(network)(p, *inputs) - inputs[0]) ** 2))(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    return step


def median_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The median seconds of a call, after one call that is not counted."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(ROUNDS.value):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def matmul_peak(dtype: jnp.dtype, size: int = 2048) -> float:
    """Operations per second of the better of two matrix products."""
    found = []
    for n in (size // 2, size):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        found.append(2 * n**3 / median_seconds(jax.jit(jnp.matmul), a, a))
    return max(found)


def compile_seconds(depth: int) -> dict[str, float]:
    """Seconds to compile the forward and the train step of a DiT of this depth."""
    spec = {**NETWORKS["DiT-S/2, 32x32x4"], "depth": depth, "dtype": jnp.dtype(DTYPE.value)}
    network = MODELS.build(spec)
    params = parameter_shapes(network)
    state = jax.eval_shape(optax.adam(1e-4).init, params)
    inputs = jax.eval_shape(lambda: example_inputs(network, BATCH.value))
    found = {}
    for name, function, arguments in (
        ("forward", forward(network), (params, *inputs)),
        ("train step", train_step(network), (params, state, *inputs)),
    ):
        start = time.perf_counter()
        jax.jit(function).lower(*arguments).compile()
        found[name] = time.perf_counter() - start
    return found


def throughput(spec: dict[str, Any], peak: float) -> list[tuple[str, float, float]]:
    """(name, images per second, fraction of the peak) of forward and train step."""
    network = MODELS.build({**spec, "dtype": jnp.dtype(DTYPE.value)})
    params = init_params(network, jax.random.key(0))
    inputs = example_inputs(network, BATCH.value)
    inputs = (jax.random.normal(jax.random.key(1), inputs[0].shape), *inputs[1:])
    rows = []
    for name, function, arguments in (
        ("forward", forward(network), (params, *inputs)),
        ("train step", train_step(network), (params, optax.adam(1e-4).init(params), *inputs)),
    ):
        seconds = median_seconds(jax.jit(function), *arguments)
        flops = count_flops(function, *arguments)
        rows.append((name, BATCH.value / seconds, flops / seconds / peak))
    return rows


def accumulation() -> dict[str, float]:
    """Images per second of a gradient over microbatches, with and without a loop."""
    network = MODELS.build(SMALL)
    params = init_params(network, jax.random.key(0))
    inputs = jax.tree.map(lambda x: jnp.stack([x] * MICROBATCHES), example_inputs(network, IMAGES))

    def total(unroll: bool) -> Callable[..., Any]:
        def add(params: Any, sums: Any, part: Any) -> tuple[Any, None]:
            gradient = jax.grad(lambda p: jnp.mean((forward(network)(p, *part) - 1) ** 2))(params)
            return jax.tree.map(jnp.add, sums, gradient), None

        def over_all(params: Any, inputs: Any) -> Any:
            zeros = jax.tree.map(jnp.zeros_like, params)
            return jax.lax.scan(lambda *at: add(params, *at), zeros, inputs, unroll=unroll)[0]

        return jax.jit(over_all)

    ways = {"in a loop": total(False), "without the loop": total(True)}
    return {way: MICROBATCHES * IMAGES / median_seconds(run, params, inputs) for way, run in ways.items()}


def main(argv: Sequence[str]) -> int:
    console = Console(width=100)
    device = jax.devices()[0]
    shallow, deep = compile_seconds(4), compile_seconds(28)
    ratios = {name: deep[name] / shallow[name] for name in shallow}
    rows = [
        (name, f"{shallow[name]:.2f} s", f"{deep[name]:.2f} s", f"{ratio:.2f}{' !' if ratio > LIMIT else ''}")
        for name, ratio in ratios.items()
    ]
    numbers, title = ("depth 4", "depth 28", "ratio"), f"compile time of a DiT of width 384 on {device.platform}"
    Table.of(("program", *numbers), rows, numbers=numbers, title=title).print(console)

    peak = matmul_peak(jnp.dtype(DTYPE.value))
    title = (
        f"batch {BATCH.value}, {DTYPE.value}, on {device.device_kind}; matrix products reach {peak / 1e9:,.0f} GFLOP/s"
    )
    rows = [
        (name, program, f"{rate:.1f}", f"{100 * share:.0f}%")
        for name, spec in NETWORKS.items()
        for program, rate, share in throughput(spec, peak)
    ]
    numbers = ("images/s", "of that peak")
    Table.of(("network", "program", *numbers), rows, numbers=numbers, title=title).print(console)

    rates = accumulation()
    rows = [(way, f"{rate:.0f}", f"{rate / rates['in a loop']:.1f}") for way, rate in rates.items()]
    title = f"gradient of a small U-Net over {MICROBATCHES} microbatches of {IMAGES} images, float32"
    numbers = ("images/s", "ratio")
    Table.of(("microbatches", *numbers), rows, numbers=numbers, title=title).print(console)
    slow = [name for name, ratio in ratios.items() if ratio > LIMIT]
    if slow:
        console.print(f"compile time grows with depth by more than {LIMIT}: {', '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    cli.run(main)
