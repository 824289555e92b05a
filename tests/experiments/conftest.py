"""Real processes: the commands as a user types them, on a network so small that a run takes seconds."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the digits are prepared, once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def environment():
    """The environment of child processes: one device, unless a test says otherwise."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_NUM_CPU", "XLA_FLAGS"))}
    return {**kept, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


class Command:
    """`python -m experiments.<module>` with arguments, as a child process."""

    def __init__(self, environment, data_dir):
        self.environment, self.data_dir = environment, data_dir

    def train_arguments(self, workdir, *arguments, config="configs/digits_unet.py"):
        """A tiny training run in `workdir`."""
        return (
            f"--config={config}",
            f"--workdir={workdir}",
            *TINY,
            f"--config.data.data_dir={self.data_dir}",
            *arguments,
        )

    def start(self, module, *arguments, **env):
        """Start it and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
            cwd=ROOT,
            env={**self.environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module, *arguments, code=0, timeout=300, **env):
        """Run it to its end; returns (stdout, stderr) after checking the exit code."""
        process = self.start(module, *arguments, **env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err

    def start_two(self, *arguments, others=(), devices=2):
        """One training run of two processes on this machine; the second one gets the arguments `others` besides."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        join = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2")
        return [
            self.start("train", *arguments, *join, f"--process_id={i}", *extra, JAX_NUM_CPU_DEVICES=str(devices))
            for i, extra in enumerate([(), others])
        ]

    @staticmethod
    def finish_two(processes, *, codes=(0, 0), timeout=200):
        """Wait for both; returns [(stdout, stderr), (stdout, stderr)] after checking the exit codes."""
        with concurrent.futures.ThreadPoolExecutor() as pool:  # a full pipe of one must not stop the other
            try:
                results = list(pool.map(lambda process: process.communicate(timeout=timeout), processes))
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.kill()
        found = tuple(process.returncode for process in processes)
        assert found == codes, f"exit codes {found}\n{results}"
        return results

    def fails(self, module, *arguments, code=2, **env):
        """Run it, require the exit code and one clear line without a traceback; returns that line."""
        _, err = self.run(module, *arguments, code=code, **env)
        assert "Traceback" not in err, err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        return lines[0]

    @staticmethod
    def kill_when(process, condition, *, timeout=200, number=signal.SIGKILL):
        """Send a signal as soon as `condition()` holds; returns False when the process ended before."""
        deadline = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < deadline:
            if condition():
                process.send_signal(number)  # 0 sends nothing: only wait
                return True
            time.sleep(0.001)
        assert process.poll() is not None, "the condition never held"
        return False


@pytest.fixture(scope="session")
def command(environment, data_dir):
    return Command(environment, data_dir)


@pytest.fixture(scope="session")
def finished(command, tmp_path_factory):
    """A finished tiny run, uninterrupted, that tests read and do not change."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    out, _ = command.run("train", *command.train_arguments(workdir))
    return workdir, out
