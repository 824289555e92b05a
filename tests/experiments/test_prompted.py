"""Pictures from prompts in pixels, in latents, and with networks that see a picture; all are exact outside the mask."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from experiments import prepare_latents
from experiments.building.kinds import open_experiment
from experiments.evaluating import editing, prompted
from experiments.evaluating.prompted import Begun
from tests.fresh_runs import called, fresh_first_stage, random_params, scenes_config

CONFIGS = {"pixels": "configs/scenes_text_to_image.py", "fill": "configs/fill.py", "edits": "configs/edits.py"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The (experiment, parameters) of each kind, made on first use."""
    made, root = {}, tmp_path_factory.mktemp("latents")

    def latents():
        stage = fresh_first_stage(root / "stage")
        called(prepare_latents, f"--first_stage={stage}", f"--out={root / 'z'}", "--splits=train,validation")
        config = scenes_config("latents")
        config.data.dataset, config.first_stage.path = f"latents:{root / 'z'}", str(stage)
        return config

    def of(kind):
        if kind not in made:
            config = latents() if kind == "latents" else scenes_config(config=CONFIGS[kind])
            experiment = open_experiment(config)
            made[kind] = experiment, random_params(experiment)
        return made[kind]

    return of


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def hole(height, width, soft=0):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 3 + 9, width // 3 : width // 3 + 7] = 255
    mask[height // 3 + 9, width // 3 : width // 3 + 7] = soft
    return mask


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["pixels", pytest.param("latents", marks=SLOW), pytest.param("fill", marks=SLOW)])
def test_outside_the_mask_the_bytes_are_those_of_the_picture(run, kind):
    """Pixels outside hard and soft masks keep their bytes at two sizes; another prompt changes the result."""
    drawn = {}
    for size, soft, words in (((24, 24), 0, "a star"), ((24, 24), 0, "a ring and a heart"), ((40, 52), 128, "a star")):
        given, mask = picture(*size), hole(*size, soft)
        begun = Begun(image=given, mask=mask)
        (found,), _ = prompted.draw(*run(kind), [words], begun=begun, guidance_scale=4.0)
        np.testing.assert_array_equal(found[mask == 0], given[mask == 0])
        assert np.abs(found[mask == 255].astype(int) - given[mask == 255]).mean() > 5
        drawn[size, words] = found
    assert (drawn[(24, 24), "a star"] != drawn[(24, 24), "a ring and a heart"]).any()


@pytest.mark.slow
def test_a_network_with_channels_for_it_sees_what_is_left(run):
    """The surroundings of the hole affect the drawn content; the original content of the hole does not."""
    given, mask = picture(24, 24), hole(24, 24)
    inside, around = given.copy(), given.copy()
    inside[mask > 0] = 0
    around[mask == 0] = 255 - around[mask == 0]
    found = [
        prompted.draw(*run("fill"), ["a star"], begun=Begun(image=image, mask=mask))[0][0]
        for image in (given, inside, around)
    ]
    np.testing.assert_array_equal(found[0][mask > 0], found[1][mask > 0])
    assert (found[0][mask > 0] != found[2][mask > 0]).any()


def test_a_picture_is_expanded(run, tmp_path):
    given, path = picture(24, 20), tmp_path / "in.png"
    Image.fromarray(given).save(path)
    begun = Begun.read(3, str(path), expand=[0, 2, 8, 6])
    (found,), _ = prompted.draw(*run("pixels"), ["a star"], begun=begun)
    assert found.shape == (32, 28, 3)
    np.testing.assert_array_equal(found[2:26, :20], given)
    assert (found != begun.image).any()


@pytest.mark.slow
def test_strength_says_how_much_stays(run):
    given = np.repeat(np.repeat(picture(6, 6), 4, 0), 4, 1)
    alike = []
    for strength in (0.4, 1.0):
        begun = Begun(image=given, strength=strength)
        (found,), _ = prompted.draw(*run("pixels"), ["a star"], begun=begun, steps=5)
        alike.append(abs(np.corrcoef(found.ravel(), given.ravel())[0, 1]))
    assert alike[0] > alike[1]


@pytest.mark.slow
def test_other_sizes_where_the_network_takes_them(run):
    (found,), _ = prompted.draw(*run("pixels"), ["a star"], height=32, width=40)
    assert found.shape == (32, 40, 3)
    said = prompted.remarks(run("pixels")[0], ["a zebra"], Begun(image=picture(30, 30)), {})
    assert any("zebra" in line for line in said)
    assert "note: the picture is 30x30 pixels, and is resized to 24x24" in said
    with pytest.raises(UserError, match=r"--height and --width: .* is not divisible by 2"):
        prompted.draw(*run("edits"), ["a star"], height=25)


def test_an_instruction_depends_on_the_picture(run):
    experiment, params = run("edits")
    made = []
    for seed_of_picture in (0, 1):
        given = np.random.default_rng(seed_of_picture).integers(0, 256, (24, 24, 3), np.uint8)
        made.append(prompted.draw(experiment, params, ["make the star green"], begun=Begun(image=given))[0][0])
    assert (made[0] != made[1]).any()
    with pytest.raises(UserError, match="does not edit by instruction"):
        prompted.require_editor(run("pixels")[0])


@pytest.mark.slow
def test_edits_are_judged_beside_true_edits_and_shuffles(run):
    experiment, params = run("edits")
    found, pictures = editing.judge(experiment, params, 6, turns=2)
    assert pictures.shape == (18, 24, 24, 3)
    assert found["controls"]["true"]["done"] == 1.0
    assert found["controls"]["true"]["kept_db"] > 90
    assert [row["done"] for row in found["turns"]] == [0, 0], "a random network does nothing"
    assert {"turn 1", "turn 2", "unchanged", "shuffled"} <= {
        line[:12].strip() for line in editing.in_words(found).split("\n")
    }


def test_judging_needs_pairs(run):
    with pytest.raises(UserError, match=r"data\.dataset=scene_edits"):
        editing.judge(*run("pixels"), 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mask": "mask"}, "--mask needs a picture: give --image=... too"),
        ({"strength": 0.5}, "--strength needs a picture: give --image=... too"),
        ({"expand": [1, 1, 1, 1]}, "--expand needs a picture: give --image=... too"),
        ({"image": "image", "expand": [0, 0, 0, 0]}, "a canvas grows by pixels"),
        ({"image": "image", "mask": "black"}, "is all black"),
        ({"image": "image", "mask": "other"}, "is 20x20 pixels, the picture 24x24"),
        ({"image": "image", "mask": "mask", "strength": 0.5}, "--strength is for a picture that changes"),
        ({"image": "image", "strength": 0.0}, "--strength=0 would leave the picture"),
        ({"image": "nowhere"}, "nowhere.png"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(flags, message, tmp_path):
    files = {"image": picture(24, 24), "mask": hole(24, 24), "black": hole(24, 24) * 0, "other": hole(20, 20)}
    for name, array in files.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    given = {name: str(tmp_path / f"{value}.png") if isinstance(value, str) else value for name, value in flags.items()}
    with pytest.raises(UserError, match=message) as error:
        Begun.read(3, given.pop("image", None), **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        ("fill", {"data.holes": {"name": "none"}}, "set data.holes.name=boxes"),
        ("pixels", {"data.holes": {"name": "boxes"}}, "set conditioning.picture.name=hole"),
        ("edits", {"data.flip": True}, "change a picture and not the one that it is made from"),
        ("pixels", {"conditioning.picture": {"name": "source"}}, "data set scenes has none"),
        ("pixels", {"conditioning.picture": {"name": "sauce"}}, "did you mean 'source'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config, fields, message):
    made = scenes_config(config=CONFIGS[config])
    with made.unlocked():
        for name, value in fields.items():
            group, field = name.split(".")
            made[group][field] = type(made)(value) if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        open_experiment(made).check()


@pytest.mark.parametrize("config", [pytest.param("fill", marks=SLOW), "edits"])
def test_the_train_step_of_the_recipe_fits_together(config):
    experiment = open_experiment(scenes_config(config=CONFIGS[config]))
    experiment.check()
    state, batch = jax.eval_shape(experiment.init_state), experiment.abstract_batch(16)
    after, metrics = jax.eval_shape(experiment.train_step(), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "loss" in metrics
    given = experiment.pipeline.reader()[0]
    assert {name: (value.shape, value.dtype) for name, value in given.items()} == {
        name: (value.shape, value.dtype) for name, value in batch.items()
    }
