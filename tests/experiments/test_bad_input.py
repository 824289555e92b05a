"""Common mistakes of new users each give one line that names the cause and the remedy."""

import json
import socket

import numpy as np
import PIL.Image
import pytest

from configs.folder import get_config
from diffusion_jax import __version__, data
from diffusion_jax.errors import UserError
from experiments import report
from experiments.building.wiring import Experiment
from experiments.evaluating.asked import read_prompts
from experiments.ground import cli, workdir
from experiments.ground.cli import load_config


def line_of(call):
    with pytest.raises(UserError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    return line


def picture(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def test_a_config_of_a_wrong_name():
    line = line_of(lambda: load_config("papers/edm_cifar"))
    assert line.endswith("no such file, and no config of that name; did you mean papers/edm_cifar10?")


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    line = line_of(lambda: data.open_dataset(f"folder:{tmp_path}"))
    assert line.startswith(f"no image in folder {tmp_path} (looked for .bmp")


def test_one_picture(tmp_path):
    picture(tmp_path / "a.png")
    config = get_config("8")
    config.data.dataset = f"folder:{tmp_path}"
    line = line_of(lambda: Experiment(config).check())
    assert line.endswith("add some, or set data.options.held_out=0 and data.validation_split=''")


def test_two_sizes(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", (8, 9))
    pipeline = data.Pipeline(dataset=f"folder:{tmp_path}", batch_size=2)
    line = line_of(lambda: pipeline.info)
    assert line.endswith("differ in size: set data.image_size and data.crop ('adm' or 'edm')")


def test_a_workdir_of_another_version(tmp_path):
    config = workdir.to_json(get_config("8"))
    config["train"]["steps_per_epoch"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = line_of(lambda: workdir.read_config(tmp_path))
    assert line.startswith(f"cannot read {tmp_path / 'config.json'}: ")
    assert "steps_per_epoch" in line
    assert "wrote this run" not in line, "which version it was, nothing says"
    (tmp_path / "environment.json").write_text(json.dumps({"diffusion_jax": "0.0.7"}))
    line = line_of(lambda: workdir.read_config(tmp_path))
    assert line.endswith(
        f"; version 0.0.7 wrote this run, and this is {__version__}: read it with that one, or train it again"
    )


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = line_of(lambda: report.serve(tmp_path, "127.0.0.1", port))
    assert line.endswith("the port is in use: give another one, or 0 for any that is free")


@pytest.mark.parametrize("group", ["data", "model", "process", "train", "optimizer"])
def test_a_group_that_is_taken_away(group):
    flags = cli.Flags("of_a_test", "")
    flags.config()
    line = line_of(lambda: flags.read(["program", "--config=configs/digits_unet.py", f"--config.{group}={{}}"]))
    assert line.startswith(f"the config lacks {group}")


def test_validation_on_what_is_trained_on():
    config = load_config("configs/digits_unet.py")
    config.data.validation_split = config.data.split
    assert "is the split that is trained on" in line_of(lambda: Experiment(config).check())


@pytest.mark.parametrize("name", ["inception", "dinov2", "reference", "dinov2_reference"])
def test_a_file_of_an_evaluation_is_looked_at_before_the_training(name, tmp_path):
    config = load_config("configs/digits_unet.py")
    (tmp_path / "found").write_text("<!doctype html>")
    config.evaluation[name] = str(tmp_path / "found")
    assert str(tmp_path / "found") in line_of(lambda: Experiment(config).check())


def test_checkpoints_in_a_file(tmp_path):
    config = load_config("configs/digits_unet.py")
    for path in ("/dev/null", str(tmp_path / "file")):
        (tmp_path / "file").touch()
        config.checkpoint.directory = path
        line = line_of(workdir.lock_checkpoints(config).__enter__)
        assert line == f"checkpoint.directory={path} is not a directory"


def test_prompts_of_a_file_end_at_a_newline(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\u2028two\x85three\r\n\nfour\n".encode())
    assert read_prompts(None, str(tmp_path / "a.txt")) == ["one\u2028two\x85three", "", "four"]
    (tmp_path / "a.txt").write_bytes(b"last")
    assert read_prompts(None, str(tmp_path / "a.txt")) == ["last"]


@pytest.mark.parametrize(
    ("text", "message"), [('"\\ud800"', "an incomplete character"), (f'"{"x" * 70_000}"', "at most")]
)
def test_prompts_that_can_not_be_read(text, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{{"text": {text}}}\n')
    line = line_of(lambda: read_prompts(None, str(tmp_path / "a.jsonl")))
    assert line.startswith(f"prompt 2 of {tmp_path / 'a.jsonl'}: ")
    assert message in line
    (tmp_path / "empty.txt").touch()
    assert line_of(lambda: read_prompts(None, str(tmp_path / "empty.txt"))).endswith("holds no prompt")
