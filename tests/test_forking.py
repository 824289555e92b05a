"""A forked command is a separate process whose output and exit code equal those of a fresh process."""

import subprocess

import pytest

from tests.processes import full_name

WORDS = ("--config=configs/digits_unet.py", "--config.model.name=unett")


@pytest.fixture
def server(command):
    if command.server is None:
        pytest.skip("imports start threads here, so that commands are not forked")
    return command.server


def test_the_same_as_a_fresh_process(command, server, tmp_path):
    arguments = [*WORDS, f"--workdir={tmp_path}/run"]
    fresh = command.start("train", *arguments)
    out, err = fresh.communicate(timeout=300)
    assert server.run(full_name("train"), arguments, 300) == (fresh.returncode, out, err)
    assert fresh.returncode == 2


def test_commands_leave_nothing_to_the_next(server):
    first = server.run("experiments.sample", ["--no_such"], 100)
    code, out, err = server.run("experiments.params", ["--help"], 100)
    assert (code, err) == (0, "")
    assert "Flags of python -m experiments.params" in out
    assert server.run("experiments.sample", ["--no_such"], 100) == first


def test_one_that_takes_too_long_is_killed(command, server, tmp_path):
    arguments = command.train_arguments(tmp_path / "run", "--config.train.steps=100000")
    with pytest.raises(subprocess.TimeoutExpired):
        server.run("experiments.train", list(arguments), 0.5)
