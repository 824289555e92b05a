"""Evaluate a trained run.

    python -m experiments.evaluate --workdir=runs/digits --metrics=class_accuracy,nearest_neighbours

Draws samples, compares them with the real data, writes evaluation.json and the pictures, and renews report.html; with
--out=other.json it only writes the numbers there, for comparing samplers. Stopped while it draws, it goes on where it
was. --download fetches the weights that the metrics need, such as Inception-v3 for fid, and checks their hash.
"""

from experiments.ground import cli
from experiments.ground.sampling_flags import SamplingFlags

FLAGS = cli.Flags(__name__, __doc__)
WORKDIR = FLAGS.path("workdir", None, "directory of the run")
METRICS = FLAGS.strings("metrics", None, "names such as fid,kid; a wrong name lists all; by default the config's")
NUM_SAMPLES = FLAGS.integer(
    "num_samples", None, "number of samples; by default the config's", lower=1, upper=cli.MOST_SAMPLES
)
SAMPLING = SamplingFlags(FLAGS)
SEED = FLAGS.integer("seed", None, "seed of the samples; by default the config's", upper=cli.MOST_SEED)
EMA = FLAGS.string("ema", None, "which average of the parameters (also width_W, post hoc), or 'params' for none")
INCEPTION = FLAGS.path("inception", None, "weights of Inception-v3, for fid and related metrics")
DINOV2 = FLAGS.path("dinov2", None, "weights of DINOv2, for fd_dinov2")
CLIP = FLAGS.path("clip", None, "folder with CLIP and its tokenizer, for cmmd and clip_score")
DOWNLOAD = FLAGS.boolean("download", False, "fetch the weights that the metrics need and that no flag names")
PROMPT = FLAGS.string(
    "prompt",
    None,
    "text for a class, for clip_score",
    check=cli.template,
    allowed="a text with {} for the name of the class",
)
REFERENCE = FLAGS.path("reference", None, "a published .npz file of statistics, for fid and sfid")
DINOV2_REFERENCE = FLAGS.path("dinov2_reference", None, "a published .npz file of statistics, for fd_dinov2")
OUT = FLAGS.path(
    "out", None, "write the numbers to this file instead of evaluation.json and the report", suffix=".json"
)
CHECKPOINT = FLAGS.integer("checkpoint", None, "step of the checkpoint; by default the newest")
COMPILATION_CACHE = FLAGS.boolean("compilation_cache", True, cli.CACHE_MEANING)
cli.begin(FLAGS)

import json
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from experiments.building.checks import check_metric, check_sampler
from experiments.building.restoring import restore_params
from experiments.evaluating import evaluation
from experiments.ground import workdir
from experiments.reports.report import write_report
from experiments.services import downloads


def main(argv: Sequence[str]) -> None:
    if not WORKDIR.value:
        raise UserError("give --workdir=..., the directory of a trained run")
    workdir.read_config(WORKDIR.value)  # which registers the run's own parts
    place = workdir.Place.of(WORKDIR.value)
    if OUT.value:
        cli.writable_file(OUT.value)
    for name in METRICS.value or ():
        check_metric(name)
    if SAMPLING.sampler.value:
        check_sampler(SAMPLING.sampler.value)
    experiment, params, source = restore_params(
        WORKDIR.value, step=CHECKPOINT.value, ema=EMA.value, flag="--checkpoint"
    )
    cli.assign_flags(experiment.config.evaluation, INCEPTION, DINOV2, CLIP, PROMPT, REFERENCE, DINOV2_REFERENCE)
    if DOWNLOAD.value:
        downloads.fetch_needed(experiment.config.evaluation, METRICS.value or experiment.config.evaluation.metrics)
    if experiment.reconstructs:
        flags = (SAMPLING.sampler, SAMPLING.steps, SEED)
        named = next((flag.name for flag in flags if flag.value is not None), None)
        if named:
            raise UserError(f"--{named} is for samples, but {WORKDIR.value} is a first stage, which has none")
    make = None
    if not experiment.reconstructs:
        SAMPLING.apply(experiment.config.sampling)
        make = evaluation.generator(experiment, sampler=SAMPLING.sampler.value, steps=SAMPLING.steps.value)
    results = evaluation.evaluate(
        experiment,
        params,
        Path(WORKDIR.value),
        metrics=tuple(METRICS.value) if METRICS.value else None,
        num_samples=NUM_SAMPLES.value,
        make=make,
        seed=SEED.value,
        source=source,
        out=Path(OUT.value) if OUT.value else None,
    )
    if parallel.is_primary():
        print(json.dumps(results, indent=2))
        place.require("while it was evaluated")
        print(f"numbers: {OUT.value}" if OUT.value else f"report: {write_report(WORKDIR.value)}")


if __name__ == "__main__":
    cli.run(main)
