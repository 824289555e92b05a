"""Train several runs as one program: configs that differ only in the seed and in numbers of the recipe.

    python -m experiments.running.train_population --member=a.json=runs/a --member=b.json=runs/b

`experiments.ablate --population=N` calls it. A config is a JSON file such as a run's own config.json. The same command
continues where it was, from the newest checkpoint that all members have. `experiments.train` on one of the workdirs
draws the final pictures, or continues with that member alone.
"""

from experiments.ground import cli


def member_text(text: str) -> str:
    """A text CONFIG.json=WORKDIR with ~ expanded in both; raises ValueError for others."""
    config, equals, directory = text.partition("=")
    return f"{cli.path_of(config)}{equals}{cli.path_of(directory)}"


FLAGS = cli.Flags(__name__, __doc__)
MEMBERS = FLAGS.repeated("member", "one for each training", check=member_text, allowed="CONFIG.json=WORKDIR")
HOW = FLAGS.choice(
    "how", "", ["vmap", "unroll"], "members of a device as one batch, or one step each; by default chosen for you"
)
cli.begin(FLAGS)

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json
from experiments.running.loop import StopSignal
from experiments.running.population import Population


def main(argv: Sequence[str]) -> int:
    pairs = [member.partition("=") for member in MEMBERS.value]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise UserError("give --member=CONFIG.json=WORKDIR, once for each training")
    missing = [path for path, _, _ in pairs if not Path(path).is_file()]
    if missing:
        raise UserError(f"--member: there is no file {missing[0]}")
    stop = StopSignal()
    configs = [config_of(path) for path, _, _ in pairs]
    return Population(configs, [Path(directory) for _, _, directory in pairs], HOW.value).run(stop)


def config_of(path: str) -> ConfigDict:
    """The config in a JSON file.

    Raises:
      UserError: it is damaged, or no config.
    """
    with cli.guarded(path):
        config = ConfigDict(read_json(path))
        cli.complete_config(config, path)
    return config


if __name__ == "__main__":
    cli.run(main)
