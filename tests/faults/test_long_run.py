"""A long run of 5,000 steps does not grow in memory, threads, open files or time per step."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments.ground.writers import read_metrics

STEPS = 5000
RUN = (
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.log.every=25",
    "--config.log.validate_every=500",
    "--config.log.sample_every=1000",
    "--config.checkpoint.every=250",
    "--config.evaluation.metrics=()",
)
WARM = 1500  # steps after which everything that is created once exists


def resources(pid: int) -> tuple[float, int, int]:
    """The private memory in megabytes, threads and open files of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    own = float(status["RssAnon"].split()[0]) / 1024
    return own, int(status["Threads"]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
def test_nothing_grows(command, tmp_path):
    """Resources, sampled once a second from outside, do not grow between the step WARM and the last step."""
    workdir = tmp_path / "run"
    process = command.start("train", *command.train_arguments(workdir, *RUN))
    samples = []
    while process.poll() is None and not (workdir / "checkpoints" / str(STEPS)).exists():
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            done = read_metrics(workdir / "metrics.jsonl")[-1]["step"] if (workdir / "metrics.jsonl").exists() else 0
            if done >= WARM:
                samples.append((done, *resources(process.pid)))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    steps, memory, threads, files = np.array(samples).T
    assert len(steps) >= 10
    for name, values, allowed in (("MB of memory", memory, 20), ("threads", threads, 2), ("open files", files, 4)):
        growth = np.polyfit(steps, values, 1)[0] * (STEPS - WARM)
        assert growth < allowed, f"{growth:.1f} {name} more in {STEPS - WARM} steps: {values}"
    speeds = [(row["step"], row["images_per_second"]) for row in read_metrics(workdir / "timings.jsonl")
              if "images_per_second" in row]  # fmt: skip
    early = np.median([speed for step, speed in speeds if WARM <= step < (WARM + STEPS) / 2])
    late = np.median([speed for step, speed in speeds if step >= (WARM + STEPS) / 2])
    assert late > 0.8 * early, f"{early:.0f} images/s at first, {late:.0f} later"
