"""DreamBooth on a published folder: class pictures are drawn once, and settings are used or refused."""

import re
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

from diffusion_jax import systems
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.embeddings import with_word, write_word
from diffusion_jax.pipelines.parts import read_parts
from experiments.building import conditions
from experiments.building.kinds import open_experiment
from experiments.evaluating import class_pictures
from experiments.ground.config_files import load_config

SD15 = Path(__file__).parents[1] / "golden" / "pipelines" / "sd15"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A folder of three pictures of different sizes."""
    folder, draw = tmp_path_factory.mktemp("subject"), np.random.default_rng(0)
    for i in range(3):
        PIL.Image.fromarray(draw.integers(0, 256, (40 + i, 36, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def opened(subject, name="adapt/dreambooth.py", directory=None, **fields):
    """The experiment of a shipped config with a small model."""
    config = load_config(f"configs/{name}")
    config.init.folder, config.data.instance = str(SD15), str(subject)
    config.train.update(dtype="float32", steps=4)
    config.sampling.update(steps=2, batch_size=4)
    config.data.num_class_images = 6
    with config.unlocked():
        for field, value in fields.items():
            group, inner = field.split("__")
            config[group][inner] = value
    return open_experiment(config, devices=(jax.devices()[0],), directory=directory)


@pytest.fixture(scope="module")
def drawn(subject, tmp_path_factory):
    """The workdir and experiment of a training whose class pictures have been drawn."""
    directory = tmp_path_factory.mktemp("run")
    experiment = opened(subject, directory=directory)
    class_pictures.without_class(experiment).check()
    class_pictures.ensure(experiment, directory)
    experiment.check()
    return directory, experiment


def test_the_class_is_drawn_and_taken_in_turns_with_the_subject(drawn):
    directory, experiment = drawn
    files = sorted((directory / "class_pictures").glob("*.png"))
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(6)]
    pictures = [np.asarray(PIL.Image.open(file)) for file in files]
    assert {picture.shape for picture in pictures} == {(32, 32, 3)}
    assert len({picture.tobytes() for picture in pictures}) == 6
    batch = experiment.pipeline.reader()[0]
    np.testing.assert_array_equal(batch["prior"], [0, 1, 0, 1])
    told = experiment.told_text.prepare({"text": ["a photo of a sks object", "a photo of an object"]})
    np.testing.assert_array_equal(batch["text_tokens_0"], told["text_tokens_0"][[0, 1, 0, 1]])
    assert {name: rows.shape for name, rows in experiment.abstract_batch(4).items()} == {
        name: rows.shape for name, rows in batch.items()
    }
    assert "pictures of 32 pixels, as the model makes them" in experiment.remarks
    assert experiment.trained == (re.escape("adapters/lora"), "objective")


def test_a_drawing_that_was_stopped_goes_on_with_the_same_pictures(drawn, subject):
    """A missing picture of the second batch is drawn again with the same bytes."""
    directory, _ = drawn
    first, last = (directory / "class_pictures" / f"{i:06d}.png" for i in (0, 5))
    before, kept = last.read_bytes(), first.stat().st_mtime_ns
    last.unlink()
    class_pictures.ensure(opened(subject, directory=directory), directory)
    assert last.read_bytes() == before
    assert first.stat().st_mtime_ns == kept
    class_pictures.ensure(opened(subject, directory=directory, sampling__steps=3), directory)  # nothing is missing
    last.unlink()
    with pytest.raises(UserError, match="were drawn from another sampling: remove that folder, or give another"):
        class_pictures.ensure(opened(subject, directory=directory, sampling__steps=3), directory)
    last.write_bytes(before)


def test_the_loss_has_both_terms_and_reaches_the_adapter_alone(drawn):
    _, experiment = drawn
    after, metrics = jax.eval_shape(experiment.train_step(), experiment.abstract_state, experiment.abstract_batch(4))
    assert {"instance_loss", "prior_loss", "loss"} <= set(metrics)
    assert set(after.params) == {"adapters/lora"}
    assert experiment.objective.prior_loss_weight == 1.0


@pytest.mark.parametrize("what", ["lora", "full"])
def test_the_text_encoder_is_trained_where_it_shall_be(subject, what):
    fields = {"data__num_class_images": 0, "train__text_encoder": True}
    experiment = opened(subject, f"adapt/dreambooth.py:{what}", **fields)
    experiment.check()
    if what == "full":
        assert set(experiment.abstract_state.params) == {"network", "conditioning/context"}
        assert set(experiment.frozen_groups) == {"codec"}
        return
    own = experiment.abstract_state.params["adapters/lora"]
    beside = {path for path in own if path.startswith("conditioning/")}
    inside = "conditioning/context/encoder_0/blocks"
    assert beside == {f"{inside}/qkv/kernel", f"{inside}/attention_out/kernel"}
    plain = opened(subject, data__num_class_images=0).abstract_state.params["adapters/lora"]
    assert set(own) - set(plain) == beside
    assert systems.NETWORK in experiment.frozen_groups


def test_a_word_is_learned_and_nothing_else(subject, tmp_path):
    """The learned vector starts from the embedding of the word's token, and pipelines can read its file."""
    fields = {"data__num_class_images": 0, "data__trigger": "red", "data__instance_prompt": "a photo of a red"}
    experiment = opened(subject, "adapt/textual_inversion.py", **fields)
    experiment.check()
    (token,) = conditions.tokens_of(experiment.told_text, "red")
    own = experiment.abstract_state.params
    assert list(own) == ["adapters/textual_inversion"]
    assert {path: leaves["rows"].shape for path, leaves in own["adapters/textual_inversion"].items()} == {
        "conditioning/context/encoder_0/token": (1, 32)
    }
    assert set(experiment.frozen_groups) == {"network", "codec", "conditioning/context"}
    params = experiment.first_state().params["adapters/textual_inversion"]
    table = experiment.base.group("conditioning/context")["encoder_0"]["token"]
    np.testing.assert_array_equal(params["conditioning/context/encoder_0/token"]["rows"], table[token][None])
    write_word(tmp_path / "word.safetensors", "<red>", params)
    parts, word = with_word(read_parts(SD15), tmp_path / "word.safetensors")
    assert word == "<red>"
    np.testing.assert_array_equal(parts.models["text_encoder"].params["token"][-1], table[token])
    fields["data__trigger"] = fields["data__instance_prompt"] = "sks"
    with pytest.raises(UserError, match=r"data\.trigger='sks' must be one token.* the tokenizer splits it into 2"):
        _ = opened(subject, "adapt/textual_inversion.py", **fields).trained
    fields["data__trigger"] = ""
    with pytest.raises(UserError, match=r"needs the word to learn: give data\.trigger, or adapter\.first"):
        _ = opened(subject, "adapt/textual_inversion.py", **fields).abstract_state


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data__instance": ""},
            "data.instance_prompt, data.class_prompt, data.num_class_images: these describe a subj",
        ),
        ({"data__instance": "/nowhere"}, "data.instance: image folder /nowhere does not exist"),
        ({"data__class_pictures": "/nowhere"}, "data.class_pictures: image folder /nowhere does not exist; add pict"),
        (
            {"data__instance_prompt": "a photo of an object"},
            "data.instance_prompt: the tokenizer reads 'a photo of an object' just as it reads 'a photo of an object'",
        ),
        ({"data__instance_prompt": " \t"}, "data.instance_prompt is empty"),
        ({"data__class_prompt": ""}, "data.class_prompt is empty: say what to draw"),
        ({"train__batch_size": 3}, "train.batch_size=3 is odd"),
        ({"data__trigger": "sks"}, "would be put before captions of the class too: write it into data.instance_prompt"),
        (
            {"data__num_class_images": 0, "objective__prior_loss_weight": 0.5},
            "weighs pictures of a class",
        ),
        ({"objective__prior_loss_weight": -1.0}, "prior_loss_weight"),
        ({"data__num_class_images": 0, "data__trigger": " \u00a0"}, "data.trigger is blank"),
        ({"data__num_class_images": 0, "data__dataset": "digits"}, "unknown argument of dataset"),
        (
            {"data__num_class_images": 0, "train__text_encoder": True, "train__trained": ("network",)},
            "train.trained says which groups are trained",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(subject, fields, message, tmp_path):
    experiment = opened(subject, directory=tmp_path, **fields)
    with pytest.raises(UserError) as error:
        (class_pictures.without_class(experiment) if experiment.draws_class else experiment).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_without_a_model_to_draw_it_from(subject):
    config = load_config("configs/digits_unet.py")
    with config.unlocked():
        config.data.update(dataset="subject", instance=str(subject), instance_prompt="sks", num_class_images=2)
    with pytest.raises(UserError, match=r"pictures of the class are drawn from a model: name it with init\.folder"):
        class_pictures.without_class(open_experiment(config))
    with config.unlocked():
        config.data.num_class_images, config.train.text_encoder = 0, True
    with pytest.raises(UserError, match=r"train\.text_encoder needs an existing model: name it with init\.folder"):
        open_experiment(config).check()
