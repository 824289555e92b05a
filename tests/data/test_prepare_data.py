"""The command prepare_data: exit codes, and one line for every expected failure."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import data, files
from diffusion_jax.data.text import prepare_text
from diffusion_jax.errors import UserError
from tests.encoder_weights import written

ROOT = Path(__file__).parents[2]


def start(*arguments, module="experiments.prepare_data", **environment):
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, **environment):
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def three_at_once(*arguments, **how):
    """Start three processes at once, require success, and return their outputs."""
    processes = [start(*arguments, **how) for _ in range(3)]
    printed = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    return [out for out, _ in printed]


def contents(directory):
    """The content of every file below a directory by name, without lock files."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


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
        (["--dataset=digits", "--text=a.txt"], "--text is of --dataset=text only"),
        (["--dataset=text", "--corpus=c", "--idx_dir=x"], "--idx_dir is not of a text"),
        (["--dataset=text", "--corpus=python_docs", "--text=a.txt", "--held_out=1"], "is taken by"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*arguments, f"--data_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("corpus", [".", "..", "../..", "a/b", "", "/etc", ".hidden", "a b", "~", "x" * 300, "nul\n"])
def test_a_corpus_is_a_plain_name_and_nothing_of_others_is_removed(corpus, tmp_path):
    (tmp_path / "data" / "text" / "first").mkdir(parents=True)
    (tmp_path / "data" / "digits").mkdir()
    for name in ("data/text/first/info.json", "data/digits/x", "thesis.tex", "a.txt"):
        (tmp_path / name).write_text("years of work")
    before = contents(tmp_path)
    arguments = dict(held_out=1, progress=False)
    with pytest.raises(UserError, match="is not a plain name"):
        prepare_text(corpus, [str(tmp_path / "a.txt")] * 2, str(tmp_path / "data"), **arguments)
    with pytest.raises(UserError, match="is not a plain name"):
        data.open_dataset("text", data_dir=str(tmp_path / "data"), corpus=corpus)
    assert contents(tmp_path) == before


def test_the_command_removes_nothing_of_others(tmp_path):
    (tmp_path / "a.txt").write_text("years of work")
    before = contents(tmp_path)
    text = f"--text={tmp_path / 'a.txt'},{tmp_path / 'a.txt'}"
    done = run("--dataset=text", f"--data_dir={tmp_path / 'data'}", f"--corpus={tmp_path}", text, "--held_out=1")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is not a plain name" in done.stderr
    assert contents(tmp_path) == before


def test_a_folder_of_the_users_that_has_the_name_of_a_text(tmp_path):
    (tmp_path / "text" / "c").mkdir(parents=True)
    for name in ("text/c/thesis.tex", "a.txt"):
        (tmp_path / name).write_text("years of work")
    with pytest.raises(UserError, match="was not made by this program"):
        prepare_text("c", [str(tmp_path / "a.txt")] * 2, str(tmp_path), held_out=1, progress=False)
    assert (tmp_path / "text" / "c" / "thesis.tex").read_text() == "years of work"


def test_three_at_once_prepare_one_text(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"document {i}, " * 2000)
    text = "--text=" + ",".join(str(tmp_path / f"{i}.txt") for i in range(20))
    arguments = ("--dataset=text", "--corpus=c", text, "--held_out=2")
    assert run(*arguments, f"--data_dir={tmp_path / 'alone'}").returncode == 0
    printed = three_at_once(*arguments, f"--data_dir={tmp_path / 'together'}")
    assert sorted(line.split()[2] for line in printed) == ["already", "already", "now"]
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_three_at_once_prepare_one_data_set(name, idx_dir, tmp_path):
    idx = [f"--idx_dir={idx_dir}"] if name == "fashion_mnist" else []
    printed = three_at_once(f"--dataset={name}", *idx, f"--data_dir={tmp_path}")
    assert sorted(line.split()[2] for line in printed) == ["already", "already", "now"]
    count = data.open_dataset(name, data_dir=str(tmp_path)).info.num_examples
    assert (
        count
        == len(data.Pipeline(dataset=name, data_dir=str(tmp_path), batch_size=1).arrays()[0])
        == (1437 if name == "digits" else 12)
    )
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name, f".{name}.lock"}


@pytest.mark.slow
def test_three_at_once_make_features(tmp_path):
    """One of three processes computes the features; the others wait and use them."""
    written("dinov2", tmp_path / "dinov2.safetensors")
    arguments = (
        "--config=configs/digits_unet.py:objective=repa",
        f"--config.data.data_dir={tmp_path / 'data'}",
        "--config.data.split=train[:300]",
        "--config.model.align_channels=128",
        f"--dinov2={tmp_path / 'dinov2.safetensors'}",
        f"--out={tmp_path / 'out' / 'features.npy'}",
    )
    three_at_once(*arguments, module="experiments.prepare_features")
    made = np.load(tmp_path / "out" / "features.npy")
    assert made.shape[0] == 300
    assert np.isfinite(made).all()
    assert (np.abs(made).max((1, 2)) > 0).all(), "no example is left out"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"features.npy", ".features.npy.json", ".features.npy.lock"}


def test_the_home_directory(tmp_path):
    """The command expands `~` in all of its paths."""
    (tmp_path / "a.txt").write_text("words " * 30)
    home = {"HOME": str(tmp_path)}
    options = ("--dataset=text", "--corpus=c", "--text=~/a.txt", "--test_text=~/a.txt", "--data_dir=~/data")
    done = run(*options, **home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "text" / "c" / "info.json").is_file()


def test_what_a_killed_preparation_leaves_is_swept_by_the_next(command, tmp_path):
    """Leftovers of a killed process are removed, but not foreign directories or those of a living process."""
    arguments = ("prepare_data", "--dataset=digits", f"--data_dir={tmp_path}")
    process = command.start(*arguments)
    assert command.kill_when(process, lambda: bool(list(tmp_path.glob(".preparing-*/digits"))))
    process.communicate()
    (left,) = tmp_path.glob(".preparing-*")
    foreign = tmp_path / ".preparing-foreign"
    foreign.mkdir()
    with files.private_directory(tmp_path, ".preparing-") as living:
        assert not left.exists()
        (living / "work").touch()
        command.run(*arguments)
        assert (living / "work").exists()
    assert [path.name for path in tmp_path.glob(".preparing-*")] == [foreign.name]
    assert (tmp_path / "digits").is_dir()
