"""Trainings in one program against the same trainings one after the other, measured as whole processes.

    python -m benchmarks.population [--members=4 --steps=200]

Prints the seconds of both ways and their ratio. A small transformer's members are computed as one batch; on a CPU, each
member of the quickstart's U-Net has its own step in the program. Both ways include the start of the interpreter, one
compilation for each process, and the same checkpoints.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
MEMBERS = FLAGS.integer("members", 4, "trainings, each with another seed", lower=2, upper=4096)
STEPS = FLAGS.integer("steps", 200, "steps of each training", lower=1, upper=1_000_000)
cli.begin(FLAGS)

import json
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import RunError
from experiments.ground import workdir

ROOT = Path(__file__).parent.parent
NETWORKS: dict[str, dict[str, Any] | None] = {
    "transformer": {"name": "dit", "patch_size": 2, "hidden_size": 64, "depth": 3, "num_heads": 4},
    "U-Net": None,
}


def main(argv: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name, model in NETWORKS.items():
            root = Path(directory) / name
            root.mkdir()
            words = [member(root, model, seed) for seed in range(MEMBERS.value)]
            alone = sum(seconds([word]) for word in words)
            together = seconds([word.replace("/alone_", "/together_") for word in words])
            print(
                f"{name}: {MEMBERS.value} trainings of {STEPS.value} steps: {alone:.1f} s one after the other, "
                f"{together:.1f} s as one program: {alone / together:.2f} times as fast",
                flush=True,
            )


def member(root: Path, model: dict[str, Any] | None, seed: int) -> str:
    """Write the config of one training and return the arguments of its command."""
    config = runpy.run_path(str(ROOT / "configs" / "digits_unet.py"))["get_config"]()
    if model is not None:
        config.model = ConfigDict(model)
    config.train.steps, config.seed = STEPS.value, seed
    config.log.update(validate_every=0, sample_every=0)
    config.checkpoint.update(every=STEPS.value, keep_best=0)
    config.evaluation.metrics = ()
    path = root / f"{seed}.json"
    path.write_text(json.dumps(workdir.to_json(config)))
    return f"--member={path}={root}/alone_{seed}"


def seconds(words: list[str]) -> float:
    """The seconds that a process takes to train these members."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "experiments.running.train_population", *words]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        raise RunError(f"a training failed: {(ended.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    cli.run(main)
