"""Published models against the reference library in eager PyTorch on the same cores, and the memory for loading one.

    python -m benchmarks.pipelines --python=/path/to/venv/bin/python     # that venv has torch and diffusers
    python -m benchmarks.pipelines                                       # this library alone, without ratios
    python -m benchmarks.pipelines --networks=unet --batch=1 --steps=2 --rounds=1

The benchmark writes two models with random parameters: a text-conditioned U-Net at a quarter of Stable Diffusion 1.5's
width, and a transformer like Flux's. Both libraries read the same folders and draw latents from the same prompts, in
turn, in one run; the median of each counts. Text encoders and first stages are tiny, so that the networks dominate the
time. Loading is measured in a separate process. Exit code 1 if a ratio is below 1.0, or if the peak memory of loading
is more than 1.3 times the weights.
"""

from experiments.ground import cli


def network_text(text: str) -> str:
    """A text unet or transformer; raises ValueError for other names."""
    if text not in ("unet", "transformer"):
        raise ValueError
    return text


FLAGS = cli.Flags(__name__, __doc__)
PYTHON = FLAGS.path("python", None, "another Python with torch and diffusers; without it the table has no ratios")
NETWORKS = FLAGS.strings(
    "networks", None, "networks to measure; by default both", check=network_text, allowed="unet and transformer"
)
BATCH = FLAGS.integer("batch", None, "pictures at once; by default 1, and then 4", lower=1, upper=1024)
SIDE = FLAGS.integer("side", 32, "side of the latents", lower=8, upper=128)
STEPS = FLAGS.integer("steps", 4, "steps of the sampler", lower=1, upper=1000)
ROUNDS = FLAGS.integer("rounds", 3, "timed calls of each; the median counts", lower=1, upper=10_000)
LOADING = FLAGS.path("loading", None, "only load this folder; print bytes of weights and of peak memory as JSON")
cli.begin(FLAGS)

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import RunError
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.pipelines.parts import read_parts
from diffusion_jax.weights.components import Part, component_of
from experiments.reports.tables import Table

ROOT = Path(__file__).parent.parent
BASES = ROOT / "tests" / "golden" / "pipelines"
LEAST, MOST = 1.0, 1.3  # ratio of speed; peak over weights
PROMPT = "a red square"
# The tiny folder, its part, and the fields that are enlarged here.
MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "unet": (
        "sd15",
        "unet",
        {
            "block_out_channels": [80, 160, 320, 320],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "norm_num_groups": 16,
        },
    ),
    "transformer": (
        "flux",
        "transformer",
        {"num_attention_heads": 6, "attention_head_dim": 128, "num_layers": 3, "num_single_layers": 6,
         "axes_dims_rope": [16, 56, 56]},
    ),
}  # fmt: skip
# The other library's process: it reads one request per line and answers with seconds.
REFERENCE = """
import json, sys, time
import torch, diffusers
diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(int(sys.argv[1]))
pipes = {}
for line in sys.stdin:
    asked = json.loads(line)
    folder = asked.pop("folder")
    if folder not in pipes:
        pipes[folder] = diffusers.DiffusionPipeline.from_pretrained(folder)
        pipes[folder].set_progress_bar_config(disable=True)
    began = time.perf_counter()
    with torch.no_grad():
        made = pipes[folder](output_type="latent", **asked).images
    print(json.dumps({"seconds": time.perf_counter() - began, "shape": list(made.shape)}), flush=True)
"""


class Reference:
    """The reference library in the other Python interpreter."""

    def __init__(self, python: str):
        command = [python, "-c", REFERENCE, str(len(os.sched_getaffinity(0)))]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115, a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            command, env=clean, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )

    def seconds(self, folder: Path, arguments: Mapping[str, Any]) -> float:
        """The seconds of one call.

        Raises:
          RunError: the other process ended.
        """
        try:
            self._process.stdin.write(json.dumps({"folder": str(folder), **arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines()
            raise RunError(f"--python={PYTHON.value} stopped: {said[-1] if said else 'it said nothing'}")
        return json.loads(answer)["seconds"]

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._said.close()


def main(argv: Sequence[str]) -> int:
    if LOADING.value:
        print(json.dumps(loading(Path(LOADING.value))))
        return 0
    reference = Reference(PYTHON.value) if PYTHON.value else None
    rows, failed = [], []
    try:
        with tempfile.TemporaryDirectory() as room:
            for name in NETWORKS.value or MODELS:
                folder, count = written(name, Path(room) / name)
                for batch in [BATCH.value] if BATCH.value else [1, 4]:
                    ours, theirs = compared(folder, batch, reference)
                    rows.append((f"{name}, {count / 1e6:.1f} M", str(batch), *timed(ours, theirs)))
                    if theirs is not None and theirs < LEAST * ours:
                        failed.append(f"{name}, batch {batch}")
                found = loading_elsewhere(folder)
                rows.append((f"{name}: loading, MiB at the peak and of weights", "", *loaded(found)))
                if found["peak"] > MOST * found["weights"]:
                    failed.append(f"loading {name}")
    finally:
        if reference is not None:
            reference.close()
    title = f"{STEPS.value} steps at latents of {SIDE.value}x{SIDE.value}, load {os.getloadavg()[0]:.1f}"
    numbers = ("batch", "here", "reference", "ratio")
    Table.of(("model", *numbers), rows, numbers=numbers, title=title).print()
    if failed:
        print(f"short of the goal: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def timed(ours: float, theirs: float | None) -> tuple[str, str, str]:
    """Cells of a row: seconds of both libraries, and how many times faster this one is."""
    return (f"{ours:.3f} s", "", "") if theirs is None else (f"{ours:.3f} s", f"{theirs:.3f} s", f"{theirs / ours:.2f}")


def loaded(found: Mapping[str, int]) -> tuple[str, str, str]:
    """Cells of a row for loading: MiB at the peak, MiB of the weights, and their ratio."""
    peak, weights = (found[name] / 2**20 for name in ("peak", "weights"))
    return f"{peak:.0f}", f"{weights:.0f}", f"{peak / weights:.2f}"


def written(name: str, folder: Path) -> tuple[Path, int]:
    """A folder with an enlarged network with random parameters, and the number of parameters."""
    base, part, larger = MODELS[name]
    parts = read_parts(BASES / base)
    config = {**parts.models[part].config, **larger}
    component = component_of(config)
    module = component.build(config, jnp.float32)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.02 * draw.standard_normal(leaf.shape, np.float32), component.shapes(module))
    parts.models[part] = Part(module=module, params=params, config=config, dtypes={})
    parts.save(folder)
    (folder / part / "config.json").write_text(json.dumps(config))
    return folder, sum(leaf.size for leaf in jax.tree.leaves(params))


def compared(folder: Path, batch: int, reference: Reference | None) -> tuple[float, float | None]:
    """Median seconds of a call in both libraries, taken in turn, after one call of each that is not counted."""
    pipe = Pipeline.from_pretrained(folder)
    side = SIDE.value * pipe.parts.models["vae"].module.factor
    asked = {"prompt": PROMPT, "num_inference_steps": STEPS.value, "height": side, "width": side,
             "num_images_per_prompt": batch}  # fmt: skip

    def ours() -> float:
        began = time.perf_counter()
        pipe(output_type="latent", **asked)
        return time.perf_counter() - began

    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS.value + 1):
        found["ours"].append(ours())
        if reference is not None:
            found["theirs"].append(reference.seconds(folder, asked))
    here, there = (statistics.median(times[1:]) if times else None for times in found.values())
    return here, there


def loading_elsewhere(folder: Path) -> dict[str, int]:
    """`loading` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.pipelines", f"--loading={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"loading {folder} failed: {(done.stderr.splitlines() or ['it said nothing'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def loading(folder: Path) -> dict[str, int]:
    """Bytes of a folder's parameters, and the peak increase of memory while they are read."""
    read_parts(folder, place=lambda part, path, leaf: None)  # tracing and imports take memory too
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    parts = read_parts(folder)
    done.set()
    watcher.join()
    weights = sum(leaf.nbytes for model in parts.models.values() for leaf in jax.tree.leaves(model.params))
    return {"weights": weights, "peak": peak}


if __name__ == "__main__":
    cli.run(main)
