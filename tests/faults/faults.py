"""Faults that are applied to real training processes.

A fault is a function of a `Trial`. It does damage, then asserts one of two outcomes. Either the same command continues
and reaches the bits of an undisturbed run, or the run stops with one line that names the cause, and reaches the same
bits once the cause is fixed. The function returns a description of the fault and of the outcome. The tests in this
directory and `benchmarks/faults.py` use these functions.
"""

import contextlib
import dataclasses
import functools
import itertools
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from diffusion_jax.data import Pipeline
from tests.bucket import emulated
from tests.processes import Command, assert_same_run, complete, one_line, rows

STEPS = 100
RUN = (  # tiny, as in tests/processes.py, with ten checkpoints and no more to compile than needed
    f"--config.train.steps={STEPS}",
    "--config.log.every=5",
    "--config.log.validate_every=0",
    "--config.log.sample_every=0",
    "--config.checkpoint.every=10",
    "--config.checkpoint.best_metric=loss",
    "--config.evaluation.metrics=()",
)
UNRELIABLE = "tests/faults/unreliable.py"
RESUMED = "resumed, same bits"


class NotPossibleHere(Exception):
    """The machine cannot produce this fault; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A description of the fault and of its outcome; `survived` says which of the two promises was kept."""

    done: str
    survived: str


class Trial:
    """A directory for runs, their reference runs, and the random generator of a series of faults."""

    def __init__(self, command: Command, directory: Path, seed: int = 0):
        self.command, self.directory = command, directory
        self.random = np.random.default_rng(seed)
        self._count = 0

    def new(self) -> Path:
        """The path of a new run, which does not exist yet."""
        self._count += 1
        return self.directory / f"{self._count:03d}" / "run"

    @functools.cache  # noqa: B019 - a trial lives as long as its process
    def reference(self, config: str = "configs/digits_unet.py") -> tuple[Path, float]:
        """An undisturbed run, and its duration in seconds."""
        began = time.monotonic()
        workdir = self.new()
        self.command.run("train", *self.arguments(workdir, config))
        return workdir, time.monotonic() - began

    def arguments(self, workdir: Path, config: str = "configs/digits_unet.py") -> tuple[str, ...]:
        """The arguments of `experiments.train`."""
        return self.command.train_arguments(workdir, *RUN, config=config)

    def resume(self, workdir: Path, *more: str, branch: int | None = None) -> None:
        """Run the same command to its end from the newest checkpoint, and require the bits of the reference."""
        newest = (complete(workdir) or [None])[-1] if branch is None else branch
        out, _ = self.command.run("train", *self.arguments(workdir), *more)
        if newest is not None:
            assert f"resuming {workdir} at step {newest}" in out or "is finished" in out, out
        assert_same_run(workdir, self.reference()[0], step=STEPS, branch=branch)

    @functools.cache  # noqa: B019
    def killed(self) -> Path:
        """A run that was killed after it had saved step 40; callers copy it."""
        return self.part_way(least=40)

    def part_way(self, workdir: Path | None = None, least: int = 20, config: str = "configs/digits_unet.py") -> Path:
        """A run that was killed after it had saved step `least`."""
        workdir = workdir or self.new()
        process = self.command.start("train", *self.arguments(workdir, config))
        assert self.command.kill_when(process, lambda: least in complete(workdir))
        process.communicate()
        return workdir


def saving(workdir: Path, began: float = 0.0) -> bool:
    """Whether the process started at `began` is writing a checkpoint; files left by killed processes are older."""
    for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):  # the checkpoint has just been completed
            if path.stat().st_mtime > began:
                return True
    return False


def phase(workdir: Path, began: float) -> str:
    """The phase of a run started at `began`, read from its files."""
    if saving(workdir, began):
        return f"writing a checkpoint after step {(complete(workdir) or [0])[-1]}"
    if STEPS in complete(workdir):
        return "evaluating"
    timings = workdir / "timings.jsonl"
    if timings.exists() and timings.stat().st_mtime > began:
        return f"training after step {rows(workdir)[-1]['step'] if rows(workdir) else 0}"
    return "starting"


def signals(trial: Trial, count: int, number: signal.Signals = signal.SIGKILL) -> Iterator[Outcome]:
    """Send a signal to a run `count` times, every other time while a checkpoint is being written, then let it end.

    The other moments are spread evenly over the duration of a whole run, so that they hit start-up, compilation,
    restoring, training, saving, evaluation and the report. A run that ends before its moment is compared with the
    reference, and a new run is started.
    """
    span = trial.reference()[1]
    workdir, sent = trial.new(), 0
    while sent < count:
        before = complete(workdir)
        began = time.time()
        process = trial.command.start("train", *trial.arguments(workdir))
        if sent % 2:
            wait = functools.partial(saving, workdir, began)
            pause = trial.random.uniform(0, 0.03)
        else:
            moment = time.monotonic() + trial.random.uniform(0, span)
            wait, pause = (lambda moment=moment: time.monotonic() >= moment), 0.0
        while process.poll() is None and not wait():
            time.sleep(0.0005)
        time.sleep(pause)
        found = phase(workdir, began)
        alive = process.poll() is None
        safe = complete(workdir)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        if not alive or (number == signal.SIGKILL and process.returncode == 0):  # it had ended before the signal came
            assert process.returncode == 0, err
            assert_same_run(workdir, trial.reference()[0], step=STEPS)
            workdir = trial.new()
            continue
        sent += 1
        assert (safe or before)[-1:] <= complete(workdir)[-1:], "a complete checkpoint was lost"
        yield Outcome(found, _after(number, process.returncode, out, err))
    trial.resume(workdir)


def _after(number: signal.Signals, code: int, out: str, err: str) -> str:
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL, err  # the end of the run is checked with that of the last one
        return RESUMED
    stopped = code == 128 + number and f"stopped by {number.name}" in err  # before and after training
    assert code in (0, -number) or stopped, err
    assert "Traceback" not in err, err
    return f"saved and said so; {RESUMED}" if "which is saved" in out else RESUMED


FAULTS: dict[str, Callable[[Trial], Outcome]] = {}
"""Name -> fault; all but the signals, which come in numbers."""


def fault(make: Callable[[Trial], Outcome]) -> Callable[[Trial], Outcome]:
    """Register a fault under the name of its function."""
    FAULTS[make.__name__] = make
    return make


@fault
def suspended(trial: Trial) -> Outcome:
    """The machine is frozen for a while, like a virtual machine during migration."""
    workdir = trial.new()
    process = trial.command.start("train", *trial.arguments(workdir))
    assert trial.command.kill_when(process, lambda: 50 in complete(workdir), number=signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert_same_run(workdir, trial.reference()[0], step=STEPS)
    return Outcome("SIGSTOP while training, SIGCONT 3 s later", "went on, same bits")


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """Mount a separate small file system that can be filled."""
    directory.mkdir(parents=True)
    options = ("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs")
    if subprocess.run(["mount", *options, directory], capture_output=True).returncode:
        raise NotPossibleHere("needs the right to mount a small file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte; returns the file to remove."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def _disk_full(trial: Trial, when: Callable[[Path], bool], words: str) -> Outcome:
    trial.reference()
    with small_disk(trial.new().parent, 32) as disk:
        workdir = disk / "run"
        process = trial.command.start("train", *trial.arguments(workdir))
        assert trial.command.kill_when(process, lambda: when(workdir), number=0)
        ballast = fill(disk)
        safe = complete(workdir)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 1, err
        line = one_line(err)
        assert "no space left" in line.lower(), line
        assert safe[-1:] <= complete(workdir)[-1:], "a complete checkpoint was lost"
        ballast.unlink()
        trial.resume(workdir)
        return Outcome(f"the disk is full {words}", f"stopped: no space left; after freeing space {RESUMED}")


@fault
def disk_full_between_checkpoints(trial: Trial) -> Outcome:
    """The disk fills up while the run trains."""
    return _disk_full(trial, lambda workdir: 30 in complete(workdir), "between checkpoints")


@fault
def disk_full_while_saving(trial: Trial) -> Outcome:
    """The disk fills up while a checkpoint is being written."""
    return _disk_full(
        trial, lambda workdir: 30 in complete(workdir) and saving(workdir), "while a checkpoint is written"
    )


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "bit_rot": lambda content: bytes(byte ^ (i % 1000 == 0) for i, byte in enumerate(content)),
    "of_zeros": lambda content: bytes(len(content)),
}


WORDS = {
    "truncated": "files cut to half",
    "bit_rot": "one bit in every 1000 bytes flipped",
    "of_zeros": "zeros, as after a power failure",
}
PARTS: dict[str, str] = {
    "arrays": "state/ocdbt.process_*/d/*",
    "index": "state/d/*",  # it records where each array lies in those files
    "record": "record/metadata",  # config, data position, fingerprint of the arrays
}


def _damaged(trial: Trial, harm: Callable[[Path], str]) -> Outcome:
    """Damage the newest checkpoint of a killed run: the damage is detected, and the error names the remedy."""
    workdir = trial.new()
    shutil.copytree(trial.killed(), workdir)
    before, newest = complete(workdir)[-2:]
    done = harm(workdir / "checkpoints" / str(newest))
    line = trial.command.fails("train", *trial.arguments(workdir))
    assert "corrupt" in line, line
    assert f"--resume_from={before}" in line, line
    trial.resume(workdir, f"--resume_from={before}", branch=before)
    return Outcome(done, f"stopped: checkpoint {newest} is corrupt; with the flag that it named {RESUMED}")


def _damage(part: str, damage: str) -> Callable[[Trial], Outcome]:
    def harm(checkpoint: Path) -> str:
        files = list(checkpoint.glob(PARTS[part]))
        assert files, f"no {part} in {checkpoint}"
        for file in files:
            file.write_bytes(DAMAGES[damage](file.read_bytes()))
        return f"{WORDS[damage]}: the {part} of the newest checkpoint"

    return lambda trial: _damaged(trial, harm)


for _part, _how in itertools.product(PARTS, DAMAGES):
    FAULTS[f"{_part}_{_how}"] = _damage(_part, _how)


@fault
def arrays_removed(trial: Trial) -> Outcome:
    """The arrays of the newest checkpoint are removed."""

    def harm(checkpoint: Path) -> str:
        shutil.rmtree(checkpoint / "state")
        return "removed: the arrays of the newest checkpoint"

    return _damaged(trial, harm)


@fault
def in_a_bucket(trial: Trial) -> Outcome:
    """A run with checkpoints in gs:// is killed and its newest checkpoint damaged; it resumes from the one before."""
    workdir, where = trial.new(), "gs://bucket/run"
    arguments = (*trial.arguments(workdir), f"--config.checkpoint.directory={where}")
    with contextlib.ExitStack() as stack:
        try:
            root, environment = stack.enter_context(emulated(trial.new()))
        except ImportError as error:
            raise NotPossibleHere(f"needs gcsfs and gcp-storage-emulator: {error}") from error
        checkpoints = root / "run"

        def saved() -> list[int]:
            return sorted(int(path.parent.name) for path in checkpoints.glob("[0-9]*/commit_success.txt"))

        process = trial.command.start("train", *arguments, **environment)
        assert trial.command.kill_when(process, lambda: 40 in saved())
        process.communicate()
        before, newest = saved()[-2:]
        for file in (checkpoints / str(newest)).glob(PARTS["arrays"]):
            file.write_bytes(DAMAGES["bit_rot"](file.read_bytes()))
        line = trial.command.fails("train", *arguments, **environment)
        assert f"checkpoint {newest} in {where} is corrupt" in line, line
        flag = f"--resume_from={before}"
        assert flag in line, line
        out, _ = trial.command.run("train", *arguments, flag, **environment)
        assert f"resuming {workdir} at step {before}" in out, out
        assert (root / "run.set_aside" / str(newest) / "commit_success.txt").exists()
        shutil.copytree(checkpoints, workdir / "checkpoints")
    assert_same_run(workdir, trial.reference()[0], step=STEPS, branch=before, directory=where)
    done = "SIGKILL, and bits flipped in the newest checkpoint, all of which are in gs:// (an emulator)"
    return Outcome(done, f"stopped: checkpoint {newest} is corrupt; with the flag that it named {RESUMED}")


@fault
def last_row_torn(trial: Trial) -> Outcome:
    """The last line of metrics.jsonl is only half written."""
    workdir = trial.part_way(least=40)
    with open(workdir / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 4')
    trial.resume(workdir)
    return Outcome("half a line at the end of metrics.jsonl", RESUMED)


@fault
def data_slow(trial: Trial) -> Outcome:
    """Every batch arrives late."""
    workdir, expected = trial.new(), trial.reference(UNRELIABLE)[0]
    trial.command.run("train", *trial.arguments(workdir, UNRELIABLE), FAULT="slow:0.05")
    assert_same_run(workdir, expected, step=STEPS)
    return Outcome("every batch is 0.05 s late", "went on, same bits")


@fault
def data_flaky(trial: Trial) -> Outcome:
    """Some reads fail, and succeed when tried again."""
    workdir, expected = trial.new(), trial.reference(UNRELIABLE)[0]
    _, err = trial.command.run("train", *trial.arguments(workdir, UNRELIABLE), FAULT="flaky:15")
    assert err.count("could not be read, trying again") >= 5, err
    assert_same_run(workdir, expected, step=STEPS)
    return Outcome("every 15th read fails with EIO", "tried again, same bits")


@fault
def data_dead(trial: Trial) -> Outcome:
    """All reads fail from some point on; later the storage works again."""
    workdir, expected = trial.new(), trial.reference(UNRELIABLE)[0]
    arguments = trial.arguments(workdir, UNRELIABLE)
    line = trial.command.fails("train", *arguments, code=1, FAULT="dead:60")
    newest = complete(workdir)[-1]
    assert "the data could not be read, 4 times" in line, line
    assert f"the last good checkpoint is {newest}" in line, line
    out, _ = trial.command.run("train", *arguments)
    assert f"resuming {workdir} at step {newest}" in out
    assert_same_run(workdir, expected, step=STEPS)
    return Outcome("from some read on all fail with EIO", f"stopped: the data could not be read; later {RESUMED}")


@fault
def image_damaged(trial: Trial) -> Outcome:
    """An image file is truncated while the run trains, and repaired later."""
    folder = trial.directory / "images"
    folder.mkdir()
    digits = Pipeline(dataset="digits", data_dir=str(trial.command.data_dir), batch_size=1)
    images, _ = digits.arrays(max_examples=400)
    for i, image in enumerate(images):
        PIL.Image.fromarray(image[..., 0]).save(folder / f"{i:03d}.png")
    config = f"{UNRELIABLE}:{folder}"
    expected = trial.reference(config)[0]
    workdir = trial.part_way(config=config)
    victim = folder / "123.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    arguments = trial.arguments(workdir, config)
    line = trial.command.fails("train", *arguments)
    assert f"cannot decode the image {victim}" in line, line
    assert "the last good checkpoint is" in line, line
    victim.write_bytes(whole)
    trial.command.run("train", *arguments)
    assert_same_run(workdir, expected, step=STEPS)
    return Outcome("an image file is cut to half", f"stopped: the file cannot be decoded; once mended {RESUMED}")


def _host_killed(trial: Trial, victim: int) -> Outcome:
    """One of two processes of a run is killed: the other stops within a minute, and a restart of both continues."""
    workdir, together = trial.new(), trial.new()
    trial.command.finish_together(trial.command.start_together(*trial.arguments(together), devices=1))
    processes = trial.command.start_together(*trial.arguments(workdir), devices=1)
    assert trial.command.kill_when(processes[victim], lambda: 30 in complete(workdir))
    began = time.monotonic()
    other = processes[1 - victim]
    _, err = other.communicate(timeout=60)
    seconds = time.monotonic() - began
    processes[victim].communicate()
    assert other.returncode != 0
    assert "another task died" in err or "had to stop" in err, err
    newest = complete(workdir)[-1]
    (out, _), _ = trial.command.finish_together(trial.command.start_together(*trial.arguments(workdir), devices=1))
    assert f"resuming {workdir} at step {newest}" in out
    assert_same_run(workdir, together, step=STEPS)
    return Outcome(f"process {victim} of 2 is killed", f"the other one stopped after {seconds:.0f} s; {RESUMED}")


@fault
def first_host_lost(trial: Trial) -> Outcome:
    """The process that coordinates the connections is killed."""
    return _host_killed(trial, 0)


@fault
def other_host_lost(trial: Trial) -> Outcome:
    """A process that only takes part is killed; its missing heartbeat is noticed 30 s later."""
    return _host_killed(trial, 1)
