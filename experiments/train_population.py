"""Train several runs as one program: configs that differ in the seed and in numbers of the recipe alone.

    python -m experiments.train_population --member=a.json=runs/a --member=b.json=runs/b

`experiments.ablate --population=N` calls it. A config is a JSON file such as a run's own config.json. The same command
goes on where it was, from the newest checkpoint that all members have. `experiments.train` on one of the workdirs draws
the final pictures, or goes on with that member alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments import cli
from experiments.loop import StopSignal
from experiments.population import Population

MEMBERS = flags.DEFINE_multi_string("member", [], "CONFIG.json=WORKDIR; one for each training")
HOW = flags.DEFINE_enum(
    "how", "", ["", "vmap", "unroll"], "members of a device as one batch, or a step for each; chosen by default"
)


def main(argv: Sequence[str]) -> int:
    pairs = [member.partition("=") for member in MEMBERS.value]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise UserError("give --member=CONFIG.json=WORKDIR, once for each training")
    missing = [path for path, _, _ in pairs if not Path(path).is_file()]
    if missing:
        raise UserError(f"--member: there is no file {missing[0]}")
    stop = StopSignal()
    configs = [ConfigDict(json.loads(Path(path).read_text())) for path, _, _ in pairs]
    return Population(configs, [Path(directory) for _, _, directory in pairs], HOW.value).run(stop)


if __name__ == "__main__":
    cli.run(main)
