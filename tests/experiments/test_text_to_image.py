"""The commands of `make text-to-image`, with tiny numbers, from nothing to a table of prompt adherence."""

import json
import re

import pytest

from tests.processes import ROOT

TINY = {
    "scenes_autoencoder.py:small": (
        "--config.codec.channels=(8,)",
        "--config.data.options.num_test=32",
        "--config.train.steps=4",
        "--config.train.batch_size=16",
        "--config.log.every=2",
        "--config.log.validate_every=4",
        "--config.log.validation_examples=16",
        "--config.log.sample_every=0",
        "--config.checkpoint.every=4",
        "--config.evaluation.num_samples=24",
        "--config.evaluation.max_real=64",
    ),
    "scenes_text_to_image.py:latents": (
        "--config.model.hidden_size=8",
        "--config.model.depth=1",
        "--config.model.num_heads=2",
        "--config.conditioning.text.encoder.width=8",
        "--config.conditioning.text.encoder.depth=1",
        "--config.train.steps=4",
        "--config.train.batch_size=16",
        "--config.log.every=2",
        "--config.log.validate_every=4",
        "--config.log.validation_examples=16",
        "--config.log.sample_every=0",
        "--config.checkpoint.every=4",
        "--config.sampling.steps=2",
        "--config.sampling.sampler.name=flow_euler",
        "--config.evaluation.num_samples=24",
        "--config.evaluation.max_real=24",
    ),
}


def steps(target):
    """The commands of a Makefile target, without the Python executable."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    return [line.replace("$(RUN)", "").replace("$(ARGS)", "").split() for line in recipe.splitlines()]


@pytest.fixture(scope="module")
def made(command, tmp_path_factory):
    """The files that the commands write, in a folder that replaces the working directory."""
    folder = tmp_path_factory.mktemp("make")
    printed = []
    for module, *arguments in steps("text-to-image"):
        moved = [re.sub(r"=(runs|data)/", rf"={folder}/\1/", argument) for argument in arguments]
        config = next(
            (argument.removeprefix("--config=configs/") for argument in arguments if "config=" in argument), ""
        )
        given = [*moved, *TINY.get(config, ())]
        if "autoencoder" in config:
            given.append("--config.data.options.num_examples=96")
        if "text_to_image" in config:
            given += [f"--config.data.dataset=latents:{folder}/data/scenes_latents"]
            given += [f"--config.first_stage.path={folder}/runs/scenes_autoencoder"]
        (folder / "data").mkdir(exist_ok=True)
        printed.append(command.run(module.removeprefix("experiments."), *given, timeout=900)[0])
    return folder, printed


def test_it_ends_with_a_table_a_picture_and_a_report(made):
    folder, printed = made
    found = json.loads((folder / "runs" / "scenes" / "evaluation.json").read_text())["prompt_adherence"]
    assert {"single_object", "colours", "position", "colour_binding", "adherence_held_out"} <= set(found)
    assert found["ceiling"] == 1.0
    assert max(found["adherence"], found["shuffled"]) < 0.5, "nothing is learned in four steps"
    assert found["round_trip"] < 0.5
    assert (folder / "runs" / "scenes" / "samples" / "final.png").is_file()
    assert "The same through the first stage" in (folder / "runs" / "scenes" / "report.html").read_text()
    assert "adherence" in printed[-1]
    assert "report" in printed[-1]


def test_made_again_it_prepares_nothing_again(made, command):
    folder, _ = made
    arguments = [f"--first_stage={folder}/runs/scenes_autoencoder", "--splits=train,validation"]
    out, _ = command.run("prepare_latents", *arguments, f"--out={folder}/data/scenes_latents")
    assert "are already" in out
