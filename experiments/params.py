"""The parameters, bytes and operations of a config's network, computed without allocating any of it.

    python -m experiments.params --config=configs/papers/dit_xl2_imagenet256.py
    python -m experiments.params --config=configs/digits_unet.py --depth=2
    python -m experiments.params --fields          # writes docs/config.md: all fields of a config, from the code

A data set of TFDS need not be prepared: its shape is known.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
DEPTH = FLAGS.integer("depth", 1, "levels of the tree that are listed; 0 for all", upper=1000)
JSON = FLAGS.boolean("json", False, "print one JSON object instead of the table")
FIELDS = FLAGS.boolean("fields", False, "instead, write docs/config.md and docs/config.json for all configs")
cli.begin(FLAGS)

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console

from diffusion_jax.errors import UserError
from diffusion_jax.models import count_flops, count_parameters, example_inputs, is_frozen, parameter_shapes
from experiments.building.kinds import plan_experiment
from experiments.ground.config_files import require_clone
from experiments.reports import fields_page
from experiments.reports.tables import Table


def main(argv: Sequence[str]) -> None:
    if FIELDS.value:
        require_clone("params --fields")
        for path in fields_page.write():
            print(f"page: {path}")
        return
    if CONFIG.value is None:
        raise UserError("give --config=..., for example --config=configs/papers/dit_xl2_imagenet256.py")
    experiment = plan_experiment(CONFIG.value)
    network = experiment.network
    for line in experiment.assumed:
        print(f"note: {line}", file=sys.stderr)
    shapes = parameter_shapes(network)
    inputs = jax.eval_shape(lambda: example_inputs(network))
    flops = count_flops(lambda params, *args: network.apply({"params": params}, *args), shapes, *inputs)
    trainable, everything = count_parameters(network), count_parameters(network, frozen=True)
    if JSON.value:
        found = {
            "network": type(network).__name__,
            "trainable": trainable,
            "frozen": everything - trainable,
            "flops_per_image": flops,
        }
        print(json.dumps(found))
        return
    console = Console(width=110)
    table(type(network).__name__, shapes, DEPTH.value).print(console)
    frozen = f" and {everything - trainable:,} frozen" if everything != trainable else ""
    console.print(f"{trainable:,} trainable parameters{frozen}, {_bytes(4 * everything)} in float32")
    console.print(
        f"{flops / 1e9:,.2f} GFLOPs for one image forward ({flops / 2e9:,.2f} G multiplications with addition)",
        highlight=False,
    )


def table(name: str, shapes: Any, depth: int) -> Table:
    """The tree of parameters down to `depth` levels, each with the sum of everything below it."""
    leaves = [
        (tuple(entry.key for entry in path), leaf, is_frozen(path))
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    total = sum(math.prod(leaf.shape) for _, leaf, _ in leaves)
    groups: dict[tuple[str, ...], list[Any]] = {}
    for path, leaf, frozen in leaves:
        for level in range(1, len(path) + 1):
            if not depth or level <= depth:
                groups.setdefault(path[:level], []).append((path, leaf, frozen))
    rows = []
    for path, members in groups.items():
        count = sum(math.prod(leaf.shape) for _, leaf, _ in members)
        is_leaf = len(members) == 1 and members[0][0] == path
        shape = "x".join(map(str, members[0][1].shape)) or "scalar" if is_leaf else ""
        label = "  " * (len(path) - 1) + path[-1] + (" (frozen)" if is_leaf and members[0][2] else "")
        rows.append((label, shape, f"{count:,}", f"{100 * count / total:.1f}%", _bytes(4 * count)))
    numbers = ("parameters", "share", "bytes")
    return Table.of(("module", "shape", *numbers), rows, numbers=numbers, title=f"{name}: parameters")


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"


if __name__ == "__main__":
    cli.run(main)
