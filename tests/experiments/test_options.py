"""The command lines: every flag of every command, its help, and how a command ends."""

import importlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.errors import UserError
from experiments.ground import cli
from experiments.running.loop import StopSignal
from experiments.sweeps import launchers

ROOT = Path(__file__).parent.parent.parent
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("experiments", "benchmarks")
    for path in (ROOT / room).rglob("*.py")
    if "    cli.run(main)\n" in path.read_text() and path.stem != "cli"
)
NUMBERS = {
    *("steps", "num_samples", "seed", "batch_size", "checkpoint", "resume_from", "profile_steps", "num_processes"),
    *("process_id", "jobs", "population", "held_out", "depth", "batch", "kills", "workers", "members", "rounds"),
    *("saves", "guidance_scale", "seconds", "limit", "labels", "seeds", "shape", "sides", "serve"),
    *("num_images", "height", "width", "weights", "side", "resolution", "num_prompts"),
    *("expand", "shift", "turns", "judge", "image_scale"),
}
NO_NUMBERS = ("10**22", str(10**22), str(2**63), "-1", "-9" * 30, "9" * 5000, "nan", "inf", "-inf", "1e400", "seven",
              "0x10", "²", "1,,2", "None", "True")  # fmt: skip
EMPTY = {
    (f"experiments.{name}", flag) for name in ("sample", "generate") for flag in ("prompt", "negative_prompt")
}  # an empty prompt is allowed
NEVER = ("", " ", "x" * 5000, "a\nb", "a\0b", "\udcff")


def refused(flags: cli.Flags, name: str, value: str) -> bool:
    """Whether a value is refused; the error must be a short line that names the flag."""
    flags.assume_defaults()
    try:
        flags.read(["program", f"--{name}={value}"])
    except UserError as error:
        line = str(error)
        assert f"--{name}" in line, line
        assert len(line) < 500, line
        return True
    return False


def test_commands_are_found():
    assert {"experiments.train", "experiments.sample", "experiments.reproduce", "benchmarks.samplers"} <= set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_flag_has_a_domain(module):
    flags = importlib.import_module(module).FLAGS
    try:
        for name in flags:
            kept = [value for value in NEVER if not refused(flags, name, value)]
            assert kept == (["", " "] if (module, name) in EMPTY else []), f"--{name} takes {kept}"
            if name in NUMBERS:
                kept = [value for value in NO_NUMBERS if not refused(flags, name, value)]
                assert not kept, f"--{name} takes {kept}"
                assert not refused(flags, name, "10"), f"--{name} takes no numbers at all"
            else:
                for value in NO_NUMBERS:
                    if not refused(flags, name, value):
                        found = flags[name] if isinstance(flags[name], list) else [flags[name]]
                        # a path or a word may look like a number, also where a number is allowed
                        assert all(isinstance(one, str | bool | tuple) for one in found), f"add --{name} to NUMBERS"
    finally:
        flags.assume_defaults()


def test_no_command_defines_flags_of_the_process():
    """No command uses absl flags, which all commands would share and which have no domain."""
    for module in COMMANDS:
        assert "flags.DEFINE" not in (ROOT / f"{module.replace('.', '/')}.py").read_text(), module


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        ("experiments.plan", "--topology=v5e:99999x99999"),
        ("experiments.plan", "--topology=v5p:4x4x4*1000000"),
        ("experiments.plan", "--topology=v5e"),
        ("experiments.plan", "--topology=v5e:4x-4"),
        ("experiments.plan", "--mesh=data:0"),
        ("experiments.plan", f"--mesh=data:{10**22}"),
        ("experiments.plan", "--mesh=data"),
        ("experiments.plan", "--strategy=tensor:²"),
        ("experiments.plan", f"--strategy=accumulate:{10**22}"),
        ("experiments.plan", "--compare=data,,fsdp"),
        ("experiments.plan", "--json=maybe"),
        ("experiments.train", "--coordinator_address=host"),
        ("experiments.train", "--coordinator_address=host:99999"),
        ("experiments.ablate", "--launch=cpus"),
        ("experiments.ablate", "--set==3"),
        ("experiments.ablate", "--launcher=lokal"),
        ("experiments.ablate", "--page=page.html"),
        ("experiments.evaluate", "--out=numbers.txt"),
        ("experiments.evaluate", "--prompt=a photo"),
        ("experiments.evaluate", "--prompt={0.__class__}"),
        ("experiments.sample", "--workdir=--num_samples=3"),
        ("experiments.sample", "--workdir=~no_such_user_here/runs"),
        ("experiments.sample", "--strength=1.5"),
        ("experiments.sample", "--set=guidance"),
        ("experiments.running.train_population", "--member=a.json"),
        ("experiments.running.train_population", "--member=a.json="),
    ],
)
def test_values_that_are_refused(module, argument):
    name, _, value = argument.removeprefix("--").partition("=")
    assert refused(importlib.import_module(module).FLAGS, name, value)


@pytest.mark.parametrize(
    ("launcher", "option", "value"),
    [
        *(("local", "jobs", value) for value in ("10**22", 2.5, True, 10**22, 0, None)),
        *(("ray", "cpus", value) for value in (float("nan"), float("inf"), -1, "two")),
        *(("ray", "gpus", -1), ("ray", "tpus", 10**22), ("ray", "retries", -2), ("ray", "retries", 0.5)),
        *(("ray", "address", 7), ("slurm", "folder", " "), ("slurm", "cluster", None)),
    ],
)
def test_options_of_launchers_have_domains(launcher, option, value):
    with pytest.raises(UserError, match=f"launcher '?{launcher}'?.* {option}\\b"):
        launchers.LAUNCHERS.build({"name": launcher, option: value})


def test_paths_mean_the_same_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for module in COMMANDS:
        flags = importlib.import_module(module).FLAGS
        for name in {"workdir", "out", "page", "source", "target", "data_dir", "guide", "record", "json"} & set(flags):
            if not refused(flags, name, "~/x"):
                assert flags[name] in (str(tmp_path / "x"), False), f"{module} --{name}"
        flags.assume_defaults()
    (tmp_path / "own.py").write_text("from configs.digits_unet import get_config\n")
    assert cli.load_config("~/own.py").model.name == "unet"
    (tmp_path / "echo.py").write_text(
        "from configs.digits_unet import get_config as base\n\n"
        "def get_config(path):\n    config = base()\n    config.data.data_dir = path\n    return config\n"
    )
    assert cli.load_config("~/echo.py:~/data").data.data_dir == str(tmp_path / "data")


def run(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


LIGHT = """
import runpy, sys
sys.argv = ["program", *sys.argv[2:]] if sys.argv[1:] else sys.argv
try:
    runpy.run_module("MODULE", run_name="__main__")
except SystemExit as error:
    heavy = {"jax", "flax", "orbax", "tensorflow", "diffusion_jax.models"} & set(sys.modules)
    print("ENDED", error.code, sorted(heavy))
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_help_and_wrong_flags_need_no_jax(module):
    ended = run("-c", LIGHT.replace("MODULE", module), "--", "--help")
    assert "ENDED 0 []" in ended.stdout, ended.stdout + ended.stderr
    flags = importlib.import_module(module)
    assert (flags.__doc__ or "").strip().splitlines()[0] in ended.stdout, "what the command does"
    assert f"python -m {module}" in ended.stdout, "an example"
    for name in flags.FLAGS:
        assert re.search(rf"^  --(\[no\])?{name}(=VALUE)?\n +\w", ended.stdout, re.M), f"--{name} and its meaning"
    wrong = run("-c", LIGHT.replace("MODULE", module), "--", "--no_such_flag=3")
    assert "ENDED 2 []" in wrong.stdout, wrong.stdout + wrong.stderr
    assert re.fullmatch(r"error: .*no_such_flag.*\n", wrong.stderr)


@pytest.mark.parametrize("word", ["--help", "-h", "-help", "--helpfull", "--helpshort"])
def test_help_starts_quickly_whatever_else_is_given(word):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = run("-m", "experiments.train", "--config=configs/digits_unet.py", "--no_such_flag", word)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert "--config.train.steps=900" in ended.stdout, "the fields of the config that is named"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_help_of_a_config_that_can_not_be_read():
    ended = run("-m", "experiments.train", "--config=configs/no_such.py", "--help")
    assert ended.returncode == 0
    assert "cannot read --config=configs/no_such.py" in ended.stdout


PROGRAM = """
import sys, time
from experiments.ground import cli
FLAGS = cli.Flags("__main__", "A program.")
cli.begin(FLAGS)
def main(argv):
    BODY
cli.run(main)
"""


def program(body):
    return PROGRAM.replace("BODY", body)


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("return None", 0, ""),
        ("raise cli.UserError('a\\n  b')", 2, "error: a b\n"),
        ("raise cli.RunError('a')", 1, "error: a\n"),
        ("raise MemoryError('4 TB')", 1, "error: not enough memory: 4 TB; ask for less at once\n"),
        ("raise EOFError", 1, "error: the input ended early: EOFError\n"),
        ("raise KeyboardInterrupt", 130, "error: stopped by SIGINT\n"),
        ("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')", 1, "error: the device has not enough memory: "),
        ("open('/proc/self/mem/x' + 'y' * 5000)", 2, "error: /proc/self/mem"),
    ],
)
def test_how_a_command_ends(body, code, line):
    ended = run("-c", program(body))
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == bool(line)


def test_what_is_not_expected_keeps_its_traceback():
    ended = run("-c", program("raise RuntimeError('a bug')"))
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["while it runs", "before it runs"])
def test_signals_are_one_line(number, code, moment):
    source = program("print('ready', flush=True); time.sleep(60)")
    if moment == "before it runs":
        source = source.replace("cli.begin(FLAGS)\n", "cli.begin(FLAGS)\nprint('ready', flush=True); time.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert re.fullmatch(rf"error: stopped by {number.name}.*\n", err)


@pytest.mark.parametrize(
    ("shell", "code", "line"),
    [
        ("{} | head -1", 1, ""),
        ("{} > /dev/full", 1, "error: no space left on the device of the workdir, or of the output\n"),
        ("{} >&-", 0, ""),
        ("{} 2>&-", 0, ""),
        ("{} < /dev/null", 0, ""),
        ("{} <&-", 0, ""),
    ],
)
def test_a_broken_output_leaves_no_traceback(tmp_path, shell, code, line):
    (tmp_path / "program.py").write_text(program("print('line\\n' * 100_000)"))
    words = f"{sys.executable} {tmp_path / 'program.py'}"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell.format(words)}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stderr == line


def test_help_into_a_pipe_that_is_closed():
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m experiments.train --help | true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_loop_gives_signals_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = StopSignal()
    assert signal.getsignal(signal.SIGTERM) != before[0]
    stop.disarm()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_job_that_is_stopped_tells_its_process_and_begins_no_other():
    import threading

    stop = threading.Event()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    threading.Timer(0.3, stop.set).start()
    assert launchers._wait(process, stop) == -signal.SIGTERM
    with pytest.raises(cli.RunError, match="job a was stopped"):
        launchers.run_job(launchers.Job(name="a", commands=(("no_such",),), directory="/"), (), stop)
