"""The noise levels at which a text-to-image run makes its errors: adherence of samples that start from true scenes.

    python -m benchmarks.noise_levels --workdir=runs/scenes [--strengths=0.2,0.4,0.6,0.8,1] [--guidance_scale=3]

For every prompt a true scene is encoded, noised up to a time (the strength), and sampled from there with the prompt,
as `experiments.sample --task=variation` does. At small strengths the scene itself gives the answer; at strength 1
nothing of it is left, and the score is that of samples from noise. The fall between two neighbouring strengths is what
the network gets wrong between these two times.
"""

from experiments.ground import cli
from experiments.ground.readers import finite_number

FLAGS = cli.Flags(__name__, __doc__)


def strength_text(text: str) -> str:
    """A time from which samples can start; raises ValueError for others."""
    if not 0 < finite_number(text) <= 1:
        raise ValueError
    return text


WORKDIR = FLAGS.path("workdir", None, "a run that reads texts and has a data set with prompts, such as scenes")
STRENGTHS = FLAGS.strings(
    "strengths", ["0.2", "0.4", "0.6", "0.8", "1"], "times from which samples start",
    check=strength_text, allowed="numbers above 0 and at most 1 with commas between them",
)  # fmt: skip
SCALE = FLAGS.number("guidance_scale", None, "scale of the guidance; by default the config's", lower=0, upper=1000)
PROMPTS = FLAGS.integer("num_prompts", 300, "prompts, the first of the data's own", lower=1, upper=100_000)
CHECKPOINT = FLAGS.integer("checkpoint", None, "step of the checkpoint; by default the last", lower=0)
SEED = FLAGS.integer("seed", 0, "seed of the noise", upper=cli.MOST_SEED)
BATCH_SIZE = FLAGS.integer("batch_size", 100, "pictures at once", lower=1, upper=2**16)
JSON = FLAGS.path("json", None, "also write the numbers to this file")
cli.begin(FLAGS)

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import tasks
from diffusion_jax.errors import UserError
from diffusion_jax.files import replace_file
from diffusion_jax.metrics.base import proportion
from diffusion_jax.metrics.prompt_adherence import adherence
from experiments.building.restoring import restore_params
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.evaluating.asked import asked_for
from experiments.evaluating.generation import ASKED
from experiments.evaluating.requests import in_unit_range
from experiments.reports.tables import Table


def scores(experiment: Experiment, params: Any, strength: float) -> dict[str, float]:
    """Adherence of samples that start at the time `strength` from true scenes: of all, with its interval, and by
    category.
    """
    known = experiment.pictures.prompts
    if not known or experiment.told_text is None:
        raise UserError(f"--workdir={WORKDIR.value} needs a text condition and data with prompts, such as scenes")
    count = min(PROMPTS.value, len(known))
    make = evaluation.generator(
        experiment,
        guidance_scale=SCALE.value,
        batch_size=min(BATCH_SIZE.value, count),
        task=tasks.Variation(strength=strength),
        model=experiment.picture_model(),
    )
    asked = asked_for(experiment, count, prompts=True)
    given = {f"{ASKED}{name}": rows for name, rows in asked.fields.items()}
    given["image"] = in_unit_range(known.pictures(range(count)))
    samples = evaluation.draw(make, params, None, count, SEED.value, given)
    right = adherence(samples, [known[i].requirement for i in range(count)])
    categories = np.array([known[i].category for i in range(count)])
    return {
        "strength": strength,
        **proportion("all", right),
        **{name: float(right[categories == name].mean()) for name in known.categories if name in categories},
    }


def main(argv: Sequence[str]) -> None:
    if not WORKDIR.value:
        raise UserError("give --workdir=..., a run that reads texts")
    experiment, params, source = restore_params(WORKDIR.value, step=CHECKPOINT.value, ema=None, flag="--checkpoint")
    found = [scores(experiment, params, float(strength)) for strength in STRENGTHS.value]
    categories = [name for name in found[0] if name not in ("strength", "all", "all_low", "all_high")]
    columns = ("strength", "all", "95% interval", *(name.replace("_", " ") for name in categories))
    rows = [
        (
            f"{row['strength']:g}",
            f"{row['all']:.1%}",
            f"[{row['all_low']:.1%}, {row['all_high']:.1%}]",
            *(f"{row[name]:.0%}" for name in categories),
        )
        for row in found
    ]
    table = Table.of(columns, rows, numbers=columns)
    print("\n".join(table.markdown()))
    if JSON.value:
        content = {"source": source, "guidance_scale": SCALE.value, "seed": SEED.value, "rows": found}
        replace_file(Path(JSON.value), (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    cli.run(main)
