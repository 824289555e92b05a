"""A caption-conditioned run, from the config to pictures of a prompt, through the real commands."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import load_model
from diffusion_jax.errors import UserError
from experiments.building import conditions
from experiments.building.restoring import restore_params
from experiments.building.wiring import Experiment
from experiments.evaluating import evaluation
from experiments.evaluating.asked import asked_for, asked_in_words
from experiments.ground.config_files import load_config
from tests.bert import bert_folder, tensors
from tests.captions import make_folder, write_config

SHORT = ("--config.train.steps=20", "--config.checkpoint.every=10", "--config.log.sample_every=10")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("captions")
    return write_config(root / "config.py", make_folder(root / "folder"))


@pytest.fixture(scope="module")
def run(command, config_file, tmp_path_factory):
    """The workdir of a finished run, and the output of the training."""
    workdir = tmp_path_factory.mktemp("told") / "run"
    out, _ = command.run("train", *command.train_arguments(workdir, *SHORT, config=config_file))
    return workdir, out


def small(config_file, **fields):
    config = load_config(str(config_file))
    config.model.update(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    config.train.batch_size = 16
    config.sampling.update(steps=2, batch_size=8)
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def test_a_run_is_told_captions(run):
    workdir, out = run
    words = json.loads((workdir / "vocabulary.json").read_text())["words"]
    assert sorted(words) == sorted(
        ["a", "one", "square", "on", "the", "left", "right", "red", "green", "blue", "yellow"]
    )
    assert words[0] == "square", "the most frequent comes first"
    assert set(json.loads((workdir / "files.json").read_text())) == {"vocabulary.json"}
    assert "conditioning/context" in (workdir / "parameters.txt").read_text()
    assert "note:" not in out
    assert json.loads((workdir / "evaluation.json").read_text())["nearest_neighbours"]["num_samples"] == 20
    assert (workdir / "samples" / "step_0000010.png").exists()
    assert 'alt="samples of the trained model"' in (workdir / "report.html").read_text()


def test_a_prompt_becomes_pictures(run, command):
    """Both prompt flags give the same pictures; unknown words are reported."""
    workdir, _ = run
    prompts = workdir.parent / "prompts.txt"
    prompts.write_text("a purple square on the left\n\n")
    out = workdir.parent / "drawn.npz"
    common = (f"--workdir={workdir}", f"--out={out}", "--guidance_scale=2", "--negative_prompt=a red square")
    said, err = command.run("sample", *common, "--num_samples=4", f"--prompts={prompts}")
    assert "note: words in prompts that are not in the word list, and all mean the same here: purple" in err
    assert "4 samples of step 20" in said
    drawn = np.load(out)
    assert drawn["images"].shape == (4, 8, 8, 3)
    assert drawn["prompts"].tolist() == ["a purple square on the left", ""] * 2
    assert out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt=a", "--prompts=b.txt"), "--prompt and --prompts both say what to draw"),
        (("--prompts=/nowhere/b.txt",), "/nowhere/b.txt"),
        (("--prompt=a", "--negative_prompt=b"), "a negative prompt replaces the null condition"),
        (("--prompt=a", "--labels=1"), "--labels needs a class-conditional network"),
    ],
)
def test_wrong_prompts_are_named(run, command, flags, message):
    assert message in command.fails("sample", f"--workdir={run[0]}", "--num_samples=2", *flags)


def test_a_changed_word_list_is_refused(run, config_file):
    workdir, _ = run
    path = workdir / "vocabulary.json"
    before = path.read_text()
    path.write_text(before.replace("red", "rod"))
    try:
        with pytest.raises(UserError, match=r"the word list of the run .* is another one"):
            _ = Experiment(load_config(str(config_file)), directory=workdir).text
        path.unlink()
        again = Experiment(load_config(str(config_file)), directory=workdir).text
        assert conditions.kept(again)["vocabulary.json"].decode() == before, "it is made again of the same captions"
    finally:
        path.write_text(before)


def random_params(experiment):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(experiment.init_state).params
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def test_an_empty_prompt_is_the_null_condition(config_file):
    """The empty prompt and the empty negative prompt equal the null condition bit for bit."""
    experiment = Experiment(small(config_file))
    params = random_params(experiment)

    def draw(texts, scale, negative=None):
        make = evaluation.generator(experiment, guidance_scale=scale, negative=negative)
        return make.generate(params, asked_in_words(experiment, texts), 8)

    some, none = draw(["a red square"], 3.0), draw([""], 1.0)
    np.testing.assert_array_equal(draw(["a red square"], 3.0, ""), some)
    np.testing.assert_array_equal(draw(["a red square"], 0.0), none)
    np.testing.assert_array_equal(draw(["a red square"], 0.0, "a blue square"), draw(["a blue square"], 1.0))
    assert (some != none).any()
    assert (draw(["a red square"], 3.0, "a blue square") != some).any()


def test_what_is_asked_where_nobody_says(config_file):
    experiment = Experiment(small(config_file))
    asked = asked_for(experiment, 10)
    assert len(asked.texts) == 10
    held_out = experiment.validation_pipeline.texts(max_examples=10)
    assert asked.texts == tuple(held_out), "captions of held-out data"
    assert asked.fields["text_tokens"].shape == (10, 8)
    rows = asked.rows(np.arange(8, 12))
    np.testing.assert_array_equal(rows["text_tokens"][2:], asked.fields["text_tokens"][:2])
    assert asked.first(12).texts[10:] == asked.texts[:2]
    assert asked.digest != asked.first(3).digest


def test_everything_falls_together_and_a_text_alone(config_file):
    fields = {"train.conditioning_dropout": 0.5, "conditioning.text.dropout": 0.2}
    assert dict(Experiment(small(config_file, **fields)).conditioning.dropout) == {("context", "pooled"): 0.7}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.dataset": "digits"}, "conditioning.text tells the network captions, but data set digits has none"),
        ({"conditioning.text.length": 0}, "length must be a whole number of at least 1"),
        (
            {"conditioning.text.dropout": 1.5},
            "conditioner 'text': dropout must be a number of at least 0 and of at most 1",
        ),
        ({"conditioning.text.encoder.width": 15}, "width=15 must be divisible by num_heads=2"),
        ({"conditioning.txt": {"length": 3}}, "conditioning.txt.*did you mean 'conditioning.text'"),
        ({"model.context_channels": 12}, r"takes context as float32 \[None, 12\], asked, it is given .*16"),
        (
            {"model": {"name": "ddpmpp", "channel_multipliers": (1,), "attention_resolutions": ()}},
            "context, pooled is given, but the network takes nothing",
        ),
        ({"sampling.guidance.scale": 2.0, "conditioning": {}}, "this one takes no class and no other condition"),
    ],
)
def test_what_does_not_fit_is_named(config_file, data_dir, fields, message):
    config = small(config_file, **{"data.data_dir": str(data_dir)})
    with config.unlocked():
        for name, value in fields.items():
            *groups, field = name.split(".")
            part = config
            for group in groups:
                part = part[group]
            part[field] = type(config)(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        Experiment(config).check()


def test_pictures_are_not_mirrored_away_from_their_captions(config_file):
    experiment = Experiment(small(config_file, **{"data.flip": True}))
    with pytest.raises(
        UserError, match=r"data\.flip mirrors .* '.*(left|right).*' would be wrong for its mirror image"
    ):
        experiment.check()


@pytest.mark.slow
def test_a_run_with_a_frozen_encoder_of_texts_is_loaded(command, config_file, tmp_path):
    """Checkpoints omit the frozen text encoder, and loading reads it from its source again."""
    encoder, workdir = bert_folder(tmp_path), tmp_path / "run"
    config = config_file.with_name("frozen.py")
    config.write_text(
        config_file.read_text()
        + "\n\n_told = get_config\n\n\ndef get_config():\n    config = _told()\n"
        + '    config.conditioning.text.update(length=12, tokenizer={"name": "words", "most": 8})\n'
        + f'    config.conditioning.text.encoder = {{"name": "bert", "folder": {str(encoder)!r}}}\n    return config\n'
    )
    arguments = ("--config.train.steps=2", "--config.log.sample_every=0", "--config.evaluation.metrics=()")
    command.run("train", *command.train_arguments(workdir, *arguments, config=config))
    model, params = load_model(workdir)
    experiment, restored, _ = restore_params(workdir)
    assert set(experiment.abstract_state.frozen) == {"conditioning/context"}
    jax.tree.map(np.testing.assert_array_equal, params, {name: restored[name] for name in params})
    raw = model.conditioning.parts[-1].prepare({"text": ["a red square on the left", ""]})
    found, own = (one.conditions(params, raw, 2)["context"] for one in (model, experiment.model))
    np.testing.assert_array_equal(found, own)
    save_file({name: value + 1 for name, value in tensors().items()}, encoder / "model.safetensors")
    with pytest.raises(UserError, match="trained with another conditioning/context than the one in"):
        load_model(workdir)
