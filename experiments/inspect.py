"""Look at a config before it is trained: fields, parts, shapes, parameters, steps, and the first batch as a picture.

    python -m experiments.inspect --config=configs/digits_unet.py --picture=batch.png
    python -m experiments.inspect --config=configs/folder.py --data=FOLDER --resolution=64 --picture=batch.png

Nothing is trained and no parameter is allocated. Where the data is not there yet, its shape is enough, but for the
picture. At the end stands whether the config can be trained; where it cannot, the line says why and the exit code is 2.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
DATA = FLAGS.path("data", None, "folder of pictures to train on, of any kind in docs/pictures.md")
RESOLUTION = FLAGS.integer(
    "resolution", None, "side in pixels; a config such as folder adapts its network to it", lower=1, upper=2**14
)
PICTURE = FLAGS.path(
    "picture", None, "write examples of the first batch to this file, as training sees them", suffix=".png"
)
DEPTH = FLAGS.integer("depth", 1, "levels of the parameter tree to list; 0 for all", upper=1000)
FIELDS = FLAGS.boolean("fields", True, "list all fields of the config")
cli.begin(FLAGS)

import sys
from collections.abc import Sequence

from rich.console import Console

from diffusion_jax.errors import UserError
from diffusion_jax.models import parameter_shapes
from experiments.reports.tables import Table
from experiments.running import inspection


def main(argv: Sequence[str]) -> None:
    if CONFIG.value is None:
        raise UserError("give --config=..., for example --config=configs/digits_unet.py")
    if PICTURE.value:
        cli.writable_file(PICTURE.value)
    experiment, missing = inspection.look_at(CONFIG.value)
    console = Console(width=118, highlight=False)

    def show(rows: inspection.Rows) -> None:
        Table.of(**rows._asdict()).print(console)

    if FIELDS.value:
        fields = cli.flatten(experiment.config).items()
        show(inspection.Rows(("field", "value"), [(name, repr(value)) for name, value in fields], title="Config"))
    for line in experiment.assumed:
        print(f"note: {line}", file=sys.stderr)
    show(inspection.parts_of(experiment))
    show(inspection.shapes_of(experiment))
    show(inspection.groups_of(experiment))
    if not experiment.reconstructs and not experiment.has_base:
        shapes = parameter_shapes(experiment.network)
        show(inspection.parameter_table(type(experiment.network).__name__, shapes, DEPTH.value))
    show(inspection.schedule_of(experiment))
    if missing:
        raise UserError(f"the config cannot be trained yet: {missing}")
    experiment.check()
    if PICTURE.value:
        inspection.save_batch(experiment, PICTURE.value)
        print(f"picture: {PICTURE.value}")
    print("every check of a training passes")


if __name__ == "__main__":
    cli.run(main)
