"""Check the judges: apply a run's metrics of prompts to pictures of known quality.

    python -m experiments.calibrate --config=configs/letters.py --out=docs/judges/letters.json

For every metric of config.evaluation.metrics that reads prompts, this gives its score on true pictures, on those of
other prompts, on blank, blurred and noisy ones and, for a model of latents, on true pictures encoded and decoded by its
first stage. Writes the numbers, and beside them a Markdown table. No model is judged, and none is needed.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
OUT = FLAGS.path("out", None, "file for the numbers; the table is written beside it", suffix=".json")
NUM_PROMPTS = FLAGS.integer("num_prompts", 150, "number of prompts to judge", lower=2, upper=100_000)
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import json
import sys
from collections.abc import Sequence

from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, replace_file
from diffusion_jax.metrics import METRICS, calibration
from experiments.building.wiring import Experiment
from experiments.evaluating import judging


def main(argv: Sequence[str]) -> None:
    """Write the cards and show them."""
    if CONFIG.value is None:
        raise UserError("give --config=..., the config whose data and metrics are meant")
    if not OUT.value:
        raise UserError("give --out=..., where to write, ending in .json")
    out = expanded(OUT.value)
    cli.writable_file(out)
    cli.writable_file(out.with_suffix(".md"))
    experiment = Experiment(CONFIG.value)
    wanted = tuple(experiment.config.evaluation.metrics)
    of_prompts = tuple(name for name in wanted if "prompts" in METRICS.facts(name).reads)
    if not of_prompts:
        raise UserError(
            f"none of the config's metrics ({', '.join(wanted) or 'it has none'}) reads prompts with known true "
            "pictures: set config.evaluation.metrics"
        )
    names, missing = judging.available(experiment, of_prompts)
    if missing:
        print(judging.in_words(missing), file=sys.stderr)
    metrics = judging.build_metrics(experiment, names, None)
    stage = experiment.first_stage
    found = calibration.calibrate(
        metrics, experiment.pictures.prompts, NUM_PROMPTS.value, stage.round_trip if stage else None
    )
    found["data"] = {"dataset": experiment.config.data.dataset, "options": dict(experiment.config.data.options)}
    replace_file(out, (json.dumps(found, indent=2) + "\n").encode())
    shown = calibration.table(found)
    replace_file(out.with_suffix(".md"), shown.encode())
    print(shown, end="")
    print(f"numbers: {out}")


if __name__ == "__main__":
    cli.run(main)
