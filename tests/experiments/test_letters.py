"""Runs that draw words: the metrics they allow, and the commands from training to word accuracy."""

import importlib.util
import json

import pytest

from configs.letters import CONDITIONS, get_config
from configs.scenes_text_to_image import get_config as scenes
from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.evaluating import judging

READ = ("word_accuracy", "edit_distance")
INSTALLED = importlib.util.find_spec("rapidocr") is not None
TINY = (
    "--config.data.options.fonts=bundled",
    "--config.data.options.num_examples=64",
    "--config.data.options.num_test=32",
    "--config.model.base_channels=8",
    "--config.model.channel_multipliers=(1,)",
    "--config.model.attention_resolutions=()",
    "--config.conditioning.text.encoder.width=8",
    "--config.conditioning.text.encoder.depth=1",
    "--config.conditioning.text.encoder.num_heads=2",
    "--config.train.steps=4",
    "--config.train.batch_size=8",
    "--config.log.every=2",
    "--config.log.validate_every=4",
    "--config.log.validation_examples=8",
    "--config.log.sample_every=0",
    "--config.checkpoint.every=4",
    "--config.sampling.steps=2",
    "--config.sampling.batch_size=8",
    "--config.evaluation.num_samples=8",
    "--config.evaluation.max_real=16",
)


def bundled(condition="both"):
    config = get_config(condition)
    config.data.options = {**config.data.options, "fonts": "bundled"}
    return config


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_network_is_told_what_the_recipe_says(condition):
    experiment = Experiment(bundled(condition))
    takes, told = experiment.network.takes, experiment.told_text.gives
    assert ("canvas" in takes) == (condition in ("both", "canvas", "large"))
    assert {name: spec.shape for name, spec in told.items()} == {name: takes[name].shape for name in told}


def test_a_canvas_has_the_size_of_the_pictures():
    config = bundled()
    config.conditioning.text.canvas = 48
    experiment = Experiment(config)
    with pytest.raises(UserError, match=r"canvas as float32 \[32, 32, 1\], asked, it is given float32 \[48, 48, 1\]"):
        experiment.conditioning.check(experiment.network.takes)


def test_where_the_engine_is_missing_one_line_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "rapidocr" else find(name))
    with pytest.raises(UserError, match=r"it needs rapidocr.*: `pip install '\.\[judges\]'`") as caught:
        judging.available(Experiment(bundled()), READ)
    assert "\n" not in str(caught.value)


def test_words_are_read_in_glyphs_and_scenes_are_not():
    letters, shapes = Experiment(bundled()), Experiment(scenes("small"))
    with pytest.raises(UserError, match="come with scenes; glyphs has none"):
        judging.available(letters, ("prompt_adherence",))
    with pytest.raises(UserError, match="come with glyphs; scenes has none"):
        judging.available(shapes, READ)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="RapidOCR is not installed")
def test_from_nothing_to_a_word_accuracy(command, tmp_path):
    """The commands train, evaluate as documented, sample a prompt, and refuse a prompt that cannot be drawn."""
    run = tmp_path / "letters"
    command.run("train", "--config=configs/letters.py", f"--workdir={run}", *TINY)
    out, _ = command.run("evaluate", f"--workdir={run}", "--metrics=word_accuracy")
    found = json.loads((run / "evaluation.json").read_text())
    assert found["word_accuracy"]["ceiling"] >= 0.7
    assert found["word_accuracy"]["word_accuracy"] <= 0.25
    assert found["settings"]["judges"]["word_accuracy"][0].startswith("RapidOCR")
    assert "report:" in out
    arguments = (f"--workdir={run}", f"--out={tmp_path}/x.npz", "--num_samples=2")
    command.run("sample", *arguments, '--prompt=the word "k7" in red')
    line = command.fails("sample", *arguments, '--prompt=the word "日" in red')
    assert "the font DejaVu Sans has no character '日'" in line


@pytest.mark.slow
def test_a_calibration_needs_metrics_of_prompts(command, tmp_path):
    line = command.fails("calibrate", "--config=configs/digits_unet.py", f"--out={tmp_path}/card.json")
    assert "reads prompts" in line
    assert "give --out" in command.fails("calibrate", "--config=configs/letters.py")
    assert "give --config" in command.fails("calibrate", f"--out={tmp_path}/card.json")
