"""A run on text, from the config to sentences and a perplexity."""

import json

import numpy as np
import pytest

from configs.papers.sedd_openwebtext import get_config as sedd_openwebtext
from configs.python_docs_mdlm import get_config
from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment

SMALL = (
    *("--config.data.options.length=16", "--config.model.hidden_size=32", "--config.model.depth=2"),
    *("--config.train.steps=60", "--config.optimizer.warmup_steps=5", "--config.log.every=20"),
    *("--config.sampling.steps=8", "--config.sampling.batch_size=16", "--config.evaluation.likelihood_images=48"),
    *("--config.log.validate_every=0", "--config.checkpoint.keep_best=0", "--config.log.sample_every=30"),
)
FLOW = {
    "name": "gaussian",
    **{"schedule": "rectified_flow", "prediction": "velocity", "time_input": "t"},
}


@pytest.fixture(scope="module")
def run(command, data_dir, tmp_path_factory):
    """The workdir of a finished run, and its output."""
    workdir = tmp_path_factory.mktemp("text") / "run"
    out, _ = command.run(
        "train",
        "--config=configs/python_docs_mdlm.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        *SMALL,
    )
    return workdir, out


def test_a_run_ends_with_texts_and_a_perplexity(run):
    workdir, out = run
    found = json.loads((workdir / "evaluation.json").read_text())
    judged = found["perplexity"]
    assert judged["perplexity_low"] < judged["perplexity"] < judged["perplexity_high"]
    assert judged["perplexity"] == pytest.approx(2 ** judged["bits_per_token"])
    assert judged["perplexity"] < 256, "better than a guess among all bytes"
    assert found["settings"]["network_evaluations"] == 8
    texts = (workdir / "samples" / "final.txt").read_text()
    assert texts.count("--- sample") == 20
    assert f"texts:   {workdir}/samples/final.txt" in out
    assert "--- sample 0 ---" in (workdir / "samples" / "step_0000030.txt").read_text()
    report = (workdir / "report.html").read_text()
    assert "--- sample 19 ---" in report
    assert "Perplexity" in report
    assert "sequences per second" in report
    assert "images per second" not in report
    assert "ddit on text; mdlm objective; trained for 60 steps" in report


def test_samples_and_evaluations_of_a_run(run, command):
    workdir, _ = run
    out = workdir.parent / "drawn.npz"
    command.run("sample", f"--workdir={workdir}", "--num_samples=3", "--sampler=mdlm_cached", f"--out={out}")
    assert np.load(out)["tokens"].shape == (3, 16)
    assert out.with_suffix(".txt").read_text().count("--- sample") == 3
    line = command.fails("sample", f"--workdir={workdir}", "--task=variation", f"--image={out}")
    assert "--task=variation needs pictures, but the data of this run is text" in line
    other = workdir.parent / "other.json"
    command.run("evaluate", f"--workdir={workdir}", f"--out={other}", "--num_samples=4", "--sampler=sedd_analytic")
    found = json.loads(other.read_text())
    assert found["perplexity"] == json.loads((workdir / "evaluation.json").read_text())["perplexity"]
    assert "SEDDAnalytic" in found["settings"]["sampler"]
    assert "no fid: it measures images" in command.fails("evaluate", f"--workdir={workdir}", "--metrics=fid")
    assert "no bits_per_dim: it measures images; for text there is perplexity" in command.fails(
        "evaluate", f"--workdir={workdir}", "--metrics=bits_per_dim"
    )
    assert "unknown sampler 'mdln'; did you mean 'mdlm'?" in command.fails(
        "sample", f"--workdir={workdir}", "--sampler=mdln"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "dit", "patch_size": 1}}, "model 'dit' is for images; the data is text: use model ddit"),
        ({"process": {"name": "tokens", "num_tokens": 300}}, "process.num_tokens is 300; the text has 256 tokens"),
        (
            {"objective": {"name": "flow_matching"}},
            "flow_matching is for process gaussian, but process.name is tokens, which fits objective discrete_flow",
        ),
        (
            {"process": FLOW, "objective": {"name": "flow_matching"}, "time_sampler": {"name": "uniform"}},
            "process.name is gaussian, which is for numbers; the data is text: use process tokens or token_chain",
        ),
    ],
)
def test_what_does_not_fit_text_is_named(data_dir, changes, message):
    config = get_config()
    config.data.data_dir = str(data_dir)
    with config.unlocked():
        for group, fields in changes.items():
            config[group] = type(config)(fields)
    with pytest.raises(UserError, match=message):
        Experiment(config).check()


def test_the_papers_on_text_can_be_planned_without_their_data():
    experiment = Experiment.planned(sedd_openwebtext())
    assert experiment.abstract_batch(2)["data"].shape == (2, 1024, 1, 1)
    assert experiment.abstract_batch(2)["data"].dtype == np.int32
    assert experiment.process.told == "sigma"
