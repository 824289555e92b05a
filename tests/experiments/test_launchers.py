"""Trainings of an ablation run on this machine, on a Ray cluster that loses a node, or as Slurm jobs."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

from diffusion_jax.errors import RunError, UserError
from experiments.ablate import evaluate_cells
from experiments.sweeps.launchers import LAUNCHERS, Job, run_job
from tests.processes import ROOT, child_environment

ABLATION = '''
"""Two samplers, two seeds."""

from configs.digits_unet import get_config as digits

SEEDS = (0, 1)


def get_config():
    config = digits()
    config.evaluation.metrics = ("class_accuracy",)
    return config


def sweep_sampler():
    yield "euler", {"sampling.sampler": {"name": "euler"}}
    yield "heun", {"sampling.sampler": {"name": "heun"}}
'''
TINY = {
    "model.base_channels": 8,
    "model.channel_multipliers": (1,),
    "model.attention_resolutions": (),
    "train.steps": 200,
    "train.batch_size": 32,
    "log.every": 10,
    "log.validate_every": 0,
    "log.sample_every": 0,
    "checkpoint.every": 10,
    "checkpoint.keep_best": 0,
    "sampling.steps": 3,
    "evaluation.num_samples": 20,
}


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def job(*commands, directory=ROOT):
    return Job(name="job", commands=commands, directory=str(directory))


@pytest.fixture
def ablate(tmp_path, data_dir):
    """Start the small ablation with a launcher; returns the process."""
    path = tmp_path / "ablation.py"
    path.write_text(ABLATION)

    def start(launcher, *options):
        settings = [f"--set={name}={value}" for name, value in {**TINY, "data.data_dir": data_dir}.items()]
        words = [f"--config={path}", f"--workdir={tmp_path}/out", f"--launcher={launcher}", *settings]
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.ablate", *words, *(f"--launch={option}" for option in options)],
            cwd=ROOT, env=child_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return start


def results(tmp_path):
    cells = sorted((tmp_path / "out" / "cells").glob("*.json"))
    return {path.stem: json.loads(path.read_text())["results"]["settings"]["step"] for path in cells}


DONE = {f"sampler_{name}-seed_{seed}": 200 for name in ("euler", "heun") for seed in (0, 1)}


def test_jobs_of_this_machine_run_in_their_directory_and_end_in_any_order(tmp_path):
    jobs = [
        Job(name=name, commands=(("params", "--config=configs/digits_unet.py", "--json"),) * count, directory=str(ROOT))
        for name, count in (("long", 2), ("short", 1))
    ]
    assert list(LAUNCHERS.build({"name": "local", "jobs": 2}).run(jobs)) == ["short", "long"]


def test_a_job_that_fails_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(RunError, match=r"experiments.params --config=nowhere.py ended with exit code"):
        run_job(
            job(("params", "--config=nowhere.py"), ("params", "--config=configs/digits_unet.py"), directory=tmp_path)
        )


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_launcher_whose_library_is_missing_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[name], None)
    with pytest.raises(UserError, match=rf"pip install -e '.\[{name}\]'"):
        list(LAUNCHERS.build(name).run([job()]))


def test_options_are_those_of_the_launcher(command, tmp_path):
    config, workdir = "--config=configs/ablations/samplers_nfe.py", f"--workdir={tmp_path}/out"
    line = command.fails("ablate", config, workdir, "--launcher=ray", "--launch=cpu=4")
    assert "did you mean 'cpus'" in line
    assert "--jobs is for the launcher local" in command.fails("ablate", config, workdir, "--launcher=ray", "--jobs=2")


@needs("submitit")
@pytest.mark.slow
def test_jobs_by_submitit(ablate, tmp_path):
    out = ablate("slurm", "cluster=local", "timeout_min=30").communicate(timeout=600)[0]
    assert results(tmp_path) == DONE, out
    assert list((tmp_path / "out" / "slurm").glob("*_log.out"))
    assert (tmp_path / "out" / "report.html").exists()


@needs("ray")
@pytest.mark.slow
def test_a_ray_node_that_is_lost_costs_no_more_than_the_steps_since_its_checkpoint(ablate, tmp_path):
    """Of two nodes with one CPU each, the one that trains first is killed, and the sweep finishes on the other."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        process = ablate("ray", f"address={cluster.address}", "cpus=1")
        checkpoints = tmp_path / "out" / "trainings"
        deadline = time.monotonic() + 300
        while not list(checkpoints.glob("*/checkpoints/[1-9]*0")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        out = process.communicate(timeout=900)[0]
        assert process.returncode == 0, out
    finally:
        cluster.shutdown()
    assert results(tmp_path) == DONE, out
    resumed = [path for path in checkpoints.glob("*/metrics.jsonl") if path.stat().st_size]
    assert len(resumed) == 2
    for path in resumed:  # every step occurs once: lost trainings were resumed, not restarted
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if "loss" in json.loads(line)]
        assert steps == sorted(set(steps))
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _trains(pid, tmp_path)], "left behind"


def _trains(pid, tmp_path):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return "experiments.train" in (words := file.read()) and str(tmp_path) in words
    except OSError:
        return False


def test_a_training_that_was_stopped_is_not_judged(tmp_path):
    """A stopped training exits with code 0 after saving, but is not complete and therefore not evaluated."""
    (tmp_path / "trainings" / "seed_0").mkdir(parents=True)
    with pytest.raises(RunError, match="seed_0 has not finished, so it is not judged"):
        evaluate_cells(tmp_path, "seed_0", ())
