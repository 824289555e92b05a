"""The parameters, bytes and operations of a config's network, computed without allocating any of it.

    python -m experiments.params --config=configs/papers/dit_xl2_imagenet256.py
    python -m experiments.params --config=configs/digits_unet.py --depth=2
    python -m experiments.params --fields          # writes docs/config.md: all fields of a config, from the code

A data set of TFDS need not be prepared: its shape is known.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
DEPTH = FLAGS.integer("depth", 1, "levels of the parameter tree to list; 0 for all", upper=1000)
JSON = FLAGS.boolean("json", False, "print one JSON object instead of the table")
FIELDS = FLAGS.boolean("fields", False, "instead, write docs/config.md and docs/config.json for all configs")
cli.begin(FLAGS)

import json
import sys
from collections.abc import Sequence

import jax
from rich.console import Console

from diffusion_jax.errors import UserError
from diffusion_jax.models import count_flops, count_parameters, example_inputs, parameter_shapes
from experiments.building.kinds import plan_experiment
from experiments.ground.config_files import require_clone
from experiments.reports import fields_page
from experiments.reports.tables import Table
from experiments.running.inspection import bytes_text, parameter_table


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
    rows = parameter_table(type(network).__name__, shapes, DEPTH.value)
    Table.of(**rows._asdict()).print(console)
    frozen = f" and {everything - trainable:,} frozen" if everything != trainable else ""
    console.print(f"{trainable:,} trainable parameters{frozen}, {bytes_text(4 * everything)} in float32")
    console.print(
        f"{flops / 1e9:,.2f} GFLOPs for one image forward ({flops / 2e9:,.2f} G multiplications with addition)",
        highlight=False,
    )


if __name__ == "__main__":
    cli.run(main)
