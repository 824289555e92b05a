"""Trackers receive the numbers of a run, keep one run after resuming, and do not change the run's files."""

import importlib
import json
import sys

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from experiments import train
from experiments.ground.writers import create_writer
from experiments.services import trackers
from experiments.services.trackers import TRACKERS, TrackerWriter

# One module that replaces all three trackers: it writes every call to a file, one per line.
STAND_IN = """
import json, os, types

def tell(*words, **named):
    if os.environ.get("STAND_IN_FAILS") == words[0]:
        raise ConnectionError("no route to the host")
    with open(os.environ["STAND_IN"], "a") as file:
        print(json.dumps([*words, named], default=str), file=file)

class Image:
    def __init__(self, picture):
        self.size = picture.size
    def __repr__(self):
        return f"Image{self.size}"

Settings = dict

class Run:
    def __init__(self, name):
        self.id, self.info, self.config = name, types.SimpleNamespace(run_id=name), self
    def update(self, fields, **named):
        tell("fields", fields)
    def log(self, values, step):
        tell("log", values, step=step)
    def finish(self, exit_code=0):
        tell("end", exit_code)

def init(project, name, id=None, resume="", dir="", settings=None, config=None):
    tell("begin", project, name, id=id, resume=resume)
    return Run(id or name)

def set_experiment(project):
    tell("project", project)

def start_run(run_id=None, run_name=None):
    tell("begin", run_name, id=run_id)
    return Run(run_id or run_name)

def log_params(params):
    assert len(params) <= 100
    tell("fields", params)

def log_metrics(values, step):
    tell("log", values, step=step)

def log_image(picture, key, step):
    tell("log", {key: Image(picture)}, step=step)

def end_run(status):
    tell("end", status)
"""
ROWS = {10: {"loss": 0.5, "odd name: é": 1.0}, 20: {"loss": 0.25}, 30: {"loss": 0.125}}


@pytest.fixture(params=sorted(TRACKERS))
def tracker(request, tmp_path, monkeypatch):
    """The name of a tracker whose package is replaced, and a function that reads its recorded calls."""
    (tmp_path / f"{request.param}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STAND_IN", str(tmp_path / "told"))
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    importlib.invalidate_caches()
    yield request.param, lambda: [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    sys.modules.pop(request.param, None)


def write(directory, name, steps, *, resume=0):
    """Write rows of a run, with the named tracker or without one."""
    directory.mkdir(exist_ok=True)
    extra = (lambda: TrackerWriter(name, directory, {"train.steps": 30, "ema.decays": ()})) if name else None
    writer = create_writer(directory, extra=extra)
    writer.resume(resume)
    for step in steps:
        writer.write_scalars(step, ROWS[step])
        writer.write_timings(step, {"images_per_second": 8.0})
    writer.write_images(steps[-1], {"samples": np.zeros((4, 8, 8, 1), np.uint8)})
    writer.close()


def test_the_flag_names_all_trackers():
    assert "one of wandb, trackio, mlflow" in train.FLAGS.help(["train"])
    assert set(TRACKERS) == {"wandb", "trackio", "mlflow"}


def test_what_a_tracker_is_told(tracker, tmp_path, monkeypatch):
    name, told = tracker
    monkeypatch.setenv(TRACKERS[name].variable, "mine")
    write(tmp_path / "run", name, [10, 20])
    calls = told()
    assert "mine" in calls[0]
    logged = {}
    for call in calls:
        if call[0] == "log":
            logged.setdefault(call[2]["step"], {}).update(call[1])
    assert logged[10]["loss"] == 0.5
    assert logged[10]["images_per_second"] == 8.0
    assert logged[20]["loss"] == 0.25
    assert logged[20]["samples"].startswith("Image(")
    assert calls[-1][0] == "end"


def test_a_run_that_goes_on_keeps_its_run_and_is_not_told_twice(tracker, tmp_path):
    name, told = tracker
    write(tmp_path / "run", name, [10, 20])
    known = json.loads((tmp_path / "run" / "tracker.json").read_text())[name]
    assert known["step"] == 20
    before = len(told())
    write(tmp_path / "run", name, [20, 30], resume=10)  # as after a kill before step 20 was saved
    write(tmp_path / "alone", None, [10, 20, 30])
    begun = [call for call in told() if call[0] == "begin"]
    assert len(begun) == 2
    assert known["run"] in json.dumps(begun[1])
    assert [call[2]["step"] for call in told()[before:] if call[0] == "log"] == [20, 20, 30, 30, 30]
    write(tmp_path / "run", name, [10], resume=0)  # from the start again, because the checkpoints were lost
    assert [call for call in told() if call[0] == "log"][-1][2]["step"] == 30
    write(tmp_path / "run", name, [10, 20, 30])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()


def test_a_tracker_that_fails_on_the_way_stops_nothing(tracker, tmp_path, monkeypatch, capsys):
    name, told = tracker
    monkeypatch.setenv("STAND_IN_FAILS", "log")
    write(tmp_path / "run", name, [10, 20])
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    err = capsys.readouterr().err
    assert err == f"note: {name} failed, and the run goes on without it: ConnectionError: no route to the host\n"
    assert not [call for call in told() if call[0] == "log"]


def test_a_tracker_that_cannot_begin_is_one_line(tracker, tmp_path, monkeypatch):
    name, _ = tracker
    monkeypatch.setenv("STAND_IN_FAILS", "begin")
    with pytest.raises(
        UserError, match=f"^{name} cannot begin a run: ConnectionError: no route to the host; .*--tracker$"
    ):
        write(tmp_path / "run", name, [10])
    assert not (tmp_path / "run" / "tracker.json").exists()


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_tracker_that_is_not_installed_is_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, TRACKERS[name].package, None)
    with pytest.raises(UserError) as raised:
        trackers.require(name)
    assert str(raised.value) == (f"--tracker={name} needs {name}, which is not installed: `pip install '.[{name}]'`")


def test_a_project_alone_is_refused(command):
    assert "give --tracker=" in command.fails("train", "--config=digits_unet", "--workdir=x", "--tracker_project=mine")


@pytest.mark.slow
def test_a_training_that_is_killed_and_resumed(command, finished, tmp_path):
    """The tracker does not change the bytes of metrics.jsonl, and sees one run that was resumed."""
    (tmp_path / "wandb.py").write_text(STAND_IN)
    told, run = tmp_path / "told", tmp_path / "run"
    where = {"PYTHONPATH": str(tmp_path), "STAND_IN": str(told)}
    arguments = command.train_arguments(run, "--tracker=wandb", "--tracker_project=digits")
    process = command.start("train", *arguments, **where)
    command.kill_when(process, lambda: (run / "checkpoints" / "20" / "commit_success.txt").exists())
    process.communicate()
    command.run("train", *arguments, **where)
    assert (run / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()
    calls = [json.loads(line) for line in told.read_text().splitlines()]
    begun = [call for call in calls if call[0] == "begin"]
    assert [call[1:3] for call in begun] == [["digits", "run"]] * 2
    assert begun[1][3] == {"id": "run", "resume": "allow"}
    steps = {call[2]["step"] for call in calls if call[0] == "log" and "loss" in call[1]}
    assert steps == {10, 20, 30, 40, 50, 60}


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_the_tracker_itself(name, tmp_path, monkeypatch):
    """The installed tracker packages, used offline."""
    module = pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    write(tmp_path / "run", name, [10, 20])
    known = json.loads((tmp_path / "run" / "tracker.json").read_text())[name]["run"]
    write(tmp_path / "run", name, [20, 30], resume=10)
    assert json.loads((tmp_path / "run" / "tracker.json").read_text())[name]["run"] == known
    if name == "mlflow":
        module.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        kept = module.MlflowClient().get_metric_history(known, "loss")
        assert {(one.step, one.value) for one in kept} == {(10, 0.5), (20, 0.25), (30, 0.125)}
        assert module.get_run(known).data.params["train.steps"] == "30"
        assert len(module.search_runs(experiment_names=["diffusion_jax"], output_format="list")) == 1
