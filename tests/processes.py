"""Run the commands in real processes as a user does, on a network so small that a run takes seconds.

The tests of the runner, the tests of faults and `benchmarks/faults.py` use this module.
"""

import concurrent.futures
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion_jax.training.checkpointing import record_digest
from tests import forking

ROOT = Path(__file__).parent.parent
TINY = (
    "--config.model.base_channels=8",
    "--config.model.channel_multipliers=(1,)",
    "--config.model.num_res_blocks=1",
    "--config.model.attention_resolutions=()",
    "--config.train.steps=60",
    "--config.train.batch_size=32",
    "--config.log.every=10",
    "--config.log.validate_every=20",
    "--config.log.validation_examples=64",
    "--config.log.sample_every=30",
    "--config.log.num_samples=16",
    "--config.checkpoint.every=20",
    "--config.sampling.sampler.name=euler",
    "--config.sampling.steps=3",
    "--config.evaluation.num_samples=20",
)


def child_environment() -> dict[str, str]:
    """The environment of child processes: one device, unless a test asks for more."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_NUM_CPU", "XLA_FLAGS"))}
    mine = {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **mine}


class Command:
    """Run `python -m experiments.<module>` with arguments as a child process; a name with a dot is a full module name.

    With `forks`, commands that only run to their end are forked from a server of imports (tests/forking.py).
    """

    def __init__(self, data_dir, *, forks=False):
        self.environment, self.data_dir = child_environment(), data_dir
        self.forks = forks and forking.POSSIBLE

    @functools.cached_property
    def server(self):
        """The server from which commands are forked, or None."""
        server = forking.ForkServer(self.environment) if self.forks else None
        return server if server is not None and server.works else None

    def _may_fork(self):
        """Whether a fork runs in the same directory and environment as a fresh process."""
        return ROOT == forking.ROOT and self.server is not None and self.server.environment == self.environment

    def train_arguments(self, workdir, *arguments, config="configs/digits_unet.py"):
        """The arguments of a tiny training run in `workdir`."""
        return (
            f"--config={config}",
            f"--workdir={workdir}",
            *TINY,
            f"--config.data.data_dir={self.data_dir}",
            *arguments,
        )

    def start(self, module, *arguments, **env):
        """Start the command and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", full_name(module), *map(str, arguments)],
            cwd=ROOT,
            env={**self.environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module, *arguments, code=0, timeout=300, **env):
        """Run the command to its end; returns (stdout, stderr) after checking the exit code."""
        if not env and self._may_fork():
            found, out, err = self.server.run(full_name(module), [str(word) for word in arguments], timeout)
            assert found == code, f"exit code {found}\n{out}\n{err}"
            return out, err
        process = self.start(module, *arguments, **env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err

    def start_together(self, *arguments, count=2, others=(), devices=2):
        """Start one training run in several local processes; all but the first also get the arguments `others`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        join = (f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}")
        return [
            self.start(
                *("train", *arguments, *join, f"--process_id={i}"),
                *(others if i else ()),
                JAX_NUM_CPU_DEVICES=str(devices),
            )
            for i in range(count)
        ]

    @staticmethod
    def finish_together(processes, *, codes=None, timeout=200):
        """Wait for all processes; returns [(stdout, stderr), ...] after checking the exit codes (0 by default)."""
        with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:  # a full pipe must not block others
            try:
                results = list(pool.map(lambda process: process.communicate(timeout=timeout), processes))
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.kill()
        found = tuple(process.returncode for process in processes)
        assert found == (codes or (0,) * len(processes)), f"exit codes {found}\n{results}"
        return results

    def fails(self, module, *arguments, code=2, **env):
        """Run the command, require the exit code and one error line without a traceback; returns that line."""
        return one_line(self.run(module, *arguments, code=code, **env)[1])

    @staticmethod
    def kill_when(process, condition, *, timeout=400, number=signal.SIGKILL):
        """Send a signal as soon as `condition()` holds; returns False if the process ended earlier."""
        deadline = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < deadline:
            if condition():
                process.send_signal(number)  # signal 0 sends nothing: only wait
                return True
            time.sleep(0.001)
        assert process.poll() is not None, "the condition never held"
        return False


def full_name(module: str) -> str:
    """The full module name of a command."""
    return module if "." in module else f"experiments.{module}"


def one_line(err: str) -> str:
    """The single line in which a command reports why it failed."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0]


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that have been written to disk."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def complete(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def final_state(workdir: Path, step: int = 60) -> tuple[Any, dict[str, Any]]:
    """The state saved at the end, on one device (parameters, optimizer, averages and step), and its record."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        path = workdir / "checkpoints" / str(step) / "state"
        saved = checkpointer.metadata(path).item_metadata.tree
        state = checkpointer.restore(
            path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved)
        )
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        return state, manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record


def assert_same_run(
    workdir: Path, reference: Path, *, step: int = 60, branch: int | None = None, directory: str = ""
) -> None:
    """Require two runs to agree bit for bit: all logged numbers, saved arrays, the record and the pictures.

    If a run keeps its checkpoints elsewhere, its record states the `directory`.
    """
    assert (workdir / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    (state, record), (expected, expected_record) = final_state(workdir, step), final_state(reference, step)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    expected_record["config"]["checkpoint"]["directory"] = directory
    expected_record["branch"] = branch
    assert record == {**expected_record, "digest": record_digest(expected_record)}
    for picture in (reference / "samples").glob("*.png"):
        assert (workdir / "samples" / picture.name).read_bytes() == picture.read_bytes(), picture.name
    if (reference / "evaluation.json").exists():
        assert (workdir / "evaluation.json").read_bytes() == (reference / "evaluation.json").read_bytes()
