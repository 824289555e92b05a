"""Write on the pages of docs/results/ what has changed since their numbers were made.

    python -m experiments.results

Every page ends with the commit of its numbers, whether the config is still the same, and the rooms in which the code
has changed. Nothing is measured again: for that, run the command in the ablation's config with `--page`.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
cli.begin(FLAGS)

from collections.abc import Sequence

from experiments.ground.config_files import require_clone
from experiments.sweeps.origin import ROOT, refresh

PAGES = ROOT / "docs" / "results"


def main(argv: Sequence[str]) -> None:
    require_clone("results")
    for path in sorted(PAGES.glob("*.md")):
        refresh(path)
        print(f"page: {path}")


if __name__ == "__main__":
    cli.run(main)
