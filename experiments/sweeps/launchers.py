"""The places where an ablation's trainings run: this machine, a Ray cluster, or Slurm.

A job is a few commands, one after the other. Each continues where it was and repeats nothing, so a job that is lost
with its machine is simply started again, there or elsewhere. Machines share the workdir and this code under the same
paths. Ray (https://docs.ray.io), or Slurm through submitit (https://github.com/facebookincubator/submitit), does
scheduling, queues and retries; both are optional: `pip install -e '.[ray]'`, `'.[slurm]'`.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from diffusion_jax.errors import RunError, UserError
from diffusion_jax.registry import Registry
from experiments.sweeps import child

ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Commands, each a module of `experiments` and its arguments, to be run in `directory`."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    directory: str


class Launcher:
    """Runs jobs until they end."""

    def run(self, jobs: Sequence[Job]) -> Iterator[str]:
        """Run the jobs, and yield their names as they end.

        Raises:
          RunError: a job failed; jobs that run elsewhere are told to stop.
        """
        raise NotImplementedError


LAUNCHERS: Registry[Launcher] = Registry("launcher")


@LAUNCHERS.register("local")
@dataclasses.dataclass(frozen=True)
class Local(Launcher):
    """This machine: `jobs` at once, each with its share of the CPUs; they end with this process in any case."""

    jobs: int = 1

    def __post_init__(self):
        _require("local", "jobs", self.jobs, lower=1, upper=1024)

    def run(self, jobs: Sequence[Job]) -> Iterator[str]:
        pool, stop = ThreadPoolExecutor(self.jobs), threading.Event()
        waiting = {pool.submit(run_job, job, self._cpus(i), stop): job for i, job in enumerate(jobs)}
        try:
            for done in as_completed(waiting):
                done.result()
                yield waiting[done].name
        except KeyboardInterrupt:
            stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _cpus(self, number: int) -> list[int]:
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cpus[number % self.jobs :: self.jobs] if self.jobs > 1 else []


@LAUNCHERS.register("ray")
@dataclasses.dataclass(frozen=True)
class Ray(Launcher):
    """A Ray cluster; a job whose node is lost starts again on another one.

    Attributes:
      address: address of the cluster; "auto" is the one that this machine belongs to.
      cpus, gpus, tpus: resources of a job.
      retries: retries after the loss of a node or of a worker; -1 means without limit.
    """

    address: str = "auto"
    cpus: float = 1
    gpus: float = 0
    tpus: float = 0
    retries: int = -1

    def __post_init__(self):
        _require_text("ray", "address", self.address)
        for name in ("cpus", "gpus", "tpus"):
            _require("ray", name, getattr(self, name), lower=0, upper=1e6)
        _require("ray", "retries", self.retries, lower=-1, upper=1e6)

    def run(self, jobs: Sequence[Job]) -> Iterator[str]:
        try:
            import ray
        except ImportError as error:
            raise UserError("launcher ray needs Ray: pip install -e '.[ray]'") from error
        try:
            ray.init(
                address=self.address,
                ignore_reinit_error=True,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )
        except ConnectionError as error:
            raise UserError(f"no Ray cluster at address={self.address}: start one with `ray start --head`") from error
        resources = {"TPU": self.tpus} if self.tpus else {}
        remote = ray.remote(run_job).options(
            num_cpus=self.cpus, num_gpus=self.gpus, resources=resources, max_retries=self.retries
        )
        waiting = {remote.remote(job): job for job in jobs}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    raise RunError(f"job {waiting[done].name} on Ray failed: {_cause(error)}") from error
                yield waiting.pop(done).name
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


@LAUNCHERS.register("slurm")
@dataclasses.dataclass(frozen=True)
class Slurm(Launcher):
    """Slurm, by submitit: one Slurm job each, queued again after preemption or a timeout.

    Attributes:
      folder: folder in which submitit keeps the output of jobs.
      cluster: "slurm"; "local" runs the same jobs as processes of this machine, for trying it out.
      options: options of submitit, for example {"slurm_partition": "gpu", "timeout_min": 240, "gpus_per_node": 1}.
    """

    folder: str = "runs/slurm"
    cluster: str = "slurm"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _require_text("slurm", "folder", self.folder)
        _require_text("slurm", "cluster", self.cluster)

    def run(self, jobs: Sequence[Job]) -> Iterator[str]:
        try:
            import submitit
        except ImportError as error:
            raise UserError("launcher slurm needs submitit: pip install -e '.[slurm]'") from error
        os.environ.update(_environment())  # for submitit's own processes
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**self.options)
            waiting = {executor.submit(Requeued(job)): job for job in jobs}
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"launcher slurm: {error}") from error
        try:
            while waiting:
                for done in [one for one in waiting if one.done()]:
                    job = waiting.pop(done)
                    failure = done.exception()
                    if failure is not None:
                        raise RunError(f"job {job.name} failed, see {self.folder}: {str(failure).strip()[-300:]}")
                    yield job.name
                time.sleep(_POLL_SECONDS if waiting else 0)
        finally:
            for one in waiting:
                one.cancel()


@dataclasses.dataclass(frozen=True)
class Requeued:
    """A job that Slurm may stop and start again."""

    job: Job

    def __call__(self) -> None:
        run_job(self.job)

    def checkpoint(self) -> Any:
        """The job that submitit queues again after preemption or a timeout."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run_job(job: Job, cpus: Sequence[int] = (), stop: threading.Event | None = None) -> None:
    """Run the commands of a job one after the other, in processes that end with this one.

    Args:
      job: the commands.
      cpus: CPUs that the processes may use; by default all.
      stop: when it is set, the running process is told to stop, and no other one is started.

    Raises:
      RunError: one of them failed, and has printed the reason; or the job was stopped.
    """
    stop = stop or threading.Event()
    for module, *arguments in job.commands:
        if stop.is_set():
            raise RunError(f"job {job.name} was stopped")
        program = [sys.executable, "-m", f"experiments.{module}", *arguments]
        starter = [sys.executable, child.__file__, str(os.getpid()), ",".join(map(str, cpus))]
        process = subprocess.Popen([*starter, *program], cwd=job.directory, env=_environment())
        try:
            code = _wait(process, stop)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # a training saves, and stops
            process.wait()
            raise
        if code:
            raise RunError(f"experiments.{module} {' '.join(arguments)} ended with exit code {code}; it says why")


def _wait(process: subprocess.Popen, stop: threading.Event) -> int:
    """The exit code of a process, which is told to stop when `stop` is set; a training then saves."""
    while not stop.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_POLL_SECONDS)
    process.send_signal(signal.SIGTERM)
    return process.wait()


def _require(launcher: str, name: str, value: float, *, lower: float, upper: float) -> None:
    """Raise UserError unless an option is in [lower, upper]."""
    if not lower <= value <= upper:
        raise UserError(f"launcher {launcher} needs {name} from {lower:,g} to {upper:,g}, got {value!r}")


def _require_text(launcher: str, name: str, value: str) -> None:
    """Raise UserError for an empty option."""
    if not value.strip():
        raise UserError(f"launcher {launcher} needs a text for {name}, got {value!r}")


def _environment() -> dict[str, str]:
    """This process's environment, with this code on the path, even in a directory that has its own `experiments`."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = dict.fromkeys([str(ROOT), *filter(None, paths)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _cause(error: Exception) -> str:
    """The last line of an error from another machine."""
    return str(error).strip().splitlines()[-1][:300]
