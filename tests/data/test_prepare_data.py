"""The command: exit codes, and one line for every expected failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "experiments.prepare_data", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_digits_twice(tmp_path):
    first = run("--dataset=digits", f"--data_dir={tmp_path}")
    assert first.returncode == 0, first.stderr
    expected = f"in {tmp_path}/digits/1.0.0 (train: 1437 examples, test: 360 examples)\n"
    assert first.stdout == f"digits is now {expected}"
    assert "examples" in first.stderr  # the progress bar
    again = run("--dataset=digits", TFDS_DATA_DIR=str(tmp_path))
    assert (again.returncode, again.stdout, again.stderr) == (0, f"digits is already {expected}", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset=cifra10"], "the nearest are cifar10"),
        (["--dataset=folder"], "needs no preparation"),
        (["--dataset=mnist", "--idx_dir=/nowhere"], "has no train-images-idx3-ubyte.gz"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*arguments, f"--data_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
