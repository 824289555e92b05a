"""The installed package: its contents, and the command `diffusion-jax` run from another directory."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax import __version__, console
from tests.processes import child_environment, one_line

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files that `pip install .` puts on the path."""
    place = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(place), "build_py", "-d", str(place / "lib")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return place / "lib"


@pytest.fixture
def command(installed, tmp_path):
    """Run `diffusion-jax` in a directory with user packages of the same names as the installed ones."""
    for name in ("experiments", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the one of the user')\n")

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "diffusion_jax", *arguments],
            cwd=tmp_path,
            env={**child_environment(), "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else one_line(done.stderr)

    return run


def test_nothing_of_a_general_name_is_installed(installed):
    assert [path.name for path in installed.iterdir()] == ["diffusion_jax"]


def test_the_runner_and_all_configs_are_installed(installed):
    for name in ("experiments", "configs"):
        there = installed / "diffusion_jax" / "_runner" / name
        ours = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*.py")}
        assert {path.relative_to(there) for path in there.rglob("*.py")} == ours
    assert (installed / "diffusion_jax" / "py.typed").exists()


def test_commands_are_those_of_the_runner(command):
    named = {path.stem.replace("_", "-") for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert set(console.commands()) == named
    listed = command()
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("  ")} == named
    assert command("--version").strip() == __version__


def test_a_config_is_found_by_name(command):
    found = json.loads(command("params", "--config=digits_unet", "--json"))
    assert found["trainable"] == 702_753


COMPLETE = """
{script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _diffusion_jax; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("tra", ["train"]),
        ("prepare-da", ["prepare-data"]),
        ("train --dry", ["--dry_run"]),
        ("train --resu", ["--resume_from="]),
        ("evaluate --guidance_s", ["--guidance_scale="]),
        ("train --config = digits_u", ["digits_unet"]),
        ("train --config = papers/edm_", ["papers/edm_cifar10"]),
    ],
)
def test_the_shell_completes_commands_flags_and_configs(words, completed, tmp_path):
    asked = COMPLETE.format(script=console.completion("bash"), words=f"diffusion-jax {words}")
    done = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed, done.stderr


def test_completion_is_of_every_flag_and_of_two_shells(capsys):
    for name, path in console.commands().items():
        module = importlib.import_module(f"experiments.{path.stem}")
        known = {flag.removeprefix("--").removesuffix("=") for flag in console.flags_of(path)}
        assert known >= set(module.FLAGS) - {"projection", "inversion"}, name
    assert console.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit && bashcompinit\n")
    assert console.main(["completion", "fish"]) == 2
    assert one_line(capsys.readouterr().err) == "error: give the shell: diffusion-jax completion bash, or zsh"


def test_help_and_errors_name_the_installed_command(command):
    assert "Flags of" in command("train", "--help")
    assert "python -m experiments" not in command("train", "--help")
    line = command("train", "--config=papers/edm_cifar10", "--workdir=run", "--config.data.data_dir=none", code=2)
    assert "run: diffusion-jax prepare-data --dataset=cifar10" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), "did you mean 'train'?"),
        (("train", "--config=digits_une", "--workdir=run"), "did you mean digits_unet?"),
        (("train", "--config=papers/edm_cifar", "--workdir=run"), "did you mean papers/edm_cifar10?"),
        (("results",), "run it in a clone"),
    ],
)
def test_what_is_not_there_is_one_line(command, arguments, words):
    assert words in command(*arguments, code=2)


def test_starting_takes_little():
    """`import diffusion_jax` imports no JAX and takes under 0.5 s of CPU; `--help` takes under 1.5 s."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import diffusion_jax, sys; assert 'jax' not in sys.modules"], check=True)
    between = os.times()
    subprocess.run([sys.executable, "-m", "experiments.train", "--help"], cwd=ROOT, check=True, capture_output=True)
    after = os.times()
    first, second = (
        (b.children_user + b.children_system) - (a.children_user + a.children_system)
        for a, b in ((before, between), (between, after))
    )
    assert first < 0.5, "0.06 s on an idle machine"
    assert second < 1.5
