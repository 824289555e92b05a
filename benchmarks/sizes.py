"""The cost of larger pictures in a transformer: operations and memory by side, for dense and chunked attention.

    python -m benchmarks.sizes                                         # the table of docs/sizes.md, some minutes
    python -m benchmarks.sizes --config=configs/scenes_2k.py --sides=1024,2048

Operations are the matrix products of one evaluation for one picture, counted on the trace; both kinds of attention have
the same number. Memory is what the program compiled for this machine needs besides parameters and picture, for an
evaluation and for the gradient of a squared error. No program is run, so even programs that would not fit this machine
can be measured.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.path("config", "configs/scenes_any.py", "file of a config whose network is a dit")
SIDES = FLAGS.strings(
    "sides", ["256", "512", "1024", "2048", "4096"], "sides of pictures in pixels",
    check=cli.number_text(8, 2**14), allowed="numbers of pixels with commas between them",
)  # fmt: skip
PAGE = FLAGS.path("page", None, "put the table into this page, between its two markers")
cli.begin(FLAGS)

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_text, replace_file
from diffusion_jax.models import Network, count_flops, example_inputs, parameter_shapes
from experiments.building.kinds import plan_experiment
from experiments.ground.config_files import load_config
from experiments.reports.tables import Table

WAYS = ("einsum", "chunked")
COLUMNS = (
    *("picture", "tokens", "GFLOP", "evaluation, dense", "evaluation, chunked", "gradient, dense", "gradient, chunked"),
)
BEGIN, END = "<!-- sizes: written by benchmarks.sizes -->", "<!-- end of sizes -->"


def programs(network: Network) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An evaluation and the gradient of a squared error, as functions of parameters and inputs."""

    def evaluate(params: Any, *inputs: Any) -> jax.Array:
        return network.apply({"params": params}, *inputs)

    return evaluate, jax.grad(lambda params, *inputs: jnp.mean(jnp.square(evaluate(params, *inputs) - inputs[0])))


def cost(network: Network, shape: tuple[int, ...]) -> dict[str, int]:
    """Operations of an evaluation for one picture of this shape, and bytes by kind of attention and program."""
    arguments = (parameter_shapes(network), *jax.eval_shape(lambda: example_inputs(network, 1, shape)))
    found = {"operations": count_flops(programs(network)[0], *arguments)}
    for way in WAYS:
        for name, program in zip(("evaluation", "gradient"), programs(network.clone(attention=way)), strict=True):
            memory = jax.jit(program).lower(*arguments).compile().memory_analysis()
            found[f"{way} {name}"] = memory.temp_size_in_bytes
    return found


def main(argv: Sequence[str]) -> None:
    model = plan_experiment(load_config(CONFIG.value)).model
    if "attention" not in {field.name for field in dataclasses.fields(model.network)}:
        raise UserError(f"--config={CONFIG.value}: its network has no choice of attention; give a config of a dit")
    rows: list[tuple[str, ...]] = []
    for side in map(int, SIDES.value):
        shape = model.of_size(side, side).diffused.shape
        found = cost(model.network, shape)
        tokens = shape[0] * shape[1] // model.network.side_unit**2
        memory = [f"{found[f'{way} {name}'] / 2**20:,.0f} MiB" for name in ("evaluation", "gradient") for way in WAYS]
        rows.append((f"{side} x {side}", f"{tokens:,}", f"{found['operations'] / 1e9:,.1f}", *memory))
    table = Table.of(COLUMNS, rows, numbers=COLUMNS[1:])
    table.print()
    if PAGE.value:
        text = read_text(PAGE.value)
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise UserError(f"--page={PAGE.value} has not the two markers, {BEGIN} and {END}")
        lines = "\n".join(table.markdown())
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        replace_file(PAGE.value, f"{before}{BEGIN}\n{lines}\n{END}{after}".encode())


if __name__ == "__main__":
    cli.run(main)
