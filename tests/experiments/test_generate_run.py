"""experiments.generate on the user's own runs: files, settings, and refused requests."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from experiments import edit, generate, prepare_latents
from tests.fresh_runs import called, fresh_first_stage, fresh_run, scenes_config

PROMPT = "--prompt=a blue ring"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in pixels."""
    return fresh_run(tmp_path_factory.mktemp("runs") / "pixels", scenes_config())


def saved(path, array):
    Image.fromarray(array).save(path)
    return path


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def hole(height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 3 + 9, width // 3 : width // 3 + 7] = 255
    return mask


def filled(run, tmp_path, *more):
    """Fill a hole by command; require that all other pixels keep their bytes in a new file."""
    given, mask, out = picture(40, 52), hole(40, 52), tmp_path / "out.png"
    flags = [f"--image={saved(tmp_path / 'in.png', given)}", f"--mask={saved(tmp_path / 'mask.png', mask)}"]
    called(generate, f"--workdir={run}", *flags, PROMPT, f"--out={out}", *more)
    with Image.open(out) as image:
        drawn, said = np.asarray(image), image.text["parameters"]
    np.testing.assert_array_equal(drawn[mask == 0], given[mask == 0])
    assert np.abs(drawn[mask > 0].astype(int) - given[mask > 0]).mean() > 5
    assert said.startswith("a blue ring\nSteps: ")
    assert "Size: 52x40" in said


def test_a_hole_is_filled(run, tmp_path):
    filled(run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["replacement", "repaint"])
def test_holes_in_latents(projection, tmp_path):
    stage = fresh_first_stage(tmp_path / "stage")
    called(prepare_latents, f"--first_stage={stage}", f"--out={tmp_path / 'z'}", "--splits=train,validation")
    config = scenes_config("latents", **{"sampling.projection.name": projection})
    config.data.dataset, config.first_stage.path = f"latents:{tmp_path / 'z'}", str(stage)
    run = fresh_run(tmp_path / "run", config)
    filled(run, tmp_path)
    called(generate, f"--workdir={run}", PROMPT, "--height=32", "--width=40", f"--out={tmp_path / 'larger.png'}")
    assert Image.open(tmp_path / "larger.png").size == (40, 32)


@pytest.mark.slow
def test_pictures_of_prompts_a_grid_and_their_settings(run, tmp_path, capsys):
    flags = [f"--workdir={run}", "--steps=2", "--seed=3", "--negative_prompt=a star", "--guidance_scale=3"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\na blue ring\n")
    called(generate, *flags, f"--prompts={prompts}", "--num_images=2", f"--out={tmp_path / 'out'}")
    assert "4 pictures in 2 steps of flow_euler" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "00003.png") as image:
        assert image.size == (24, 24)
        said = image.text["parameters"].split("\n")
    assert said[:2] == ["a blue ring", "Negative prompt: a star"]
    assert said[2].startswith("Steps: 2, Sampler: flow_euler, CFG scale: 3, Seed: 3, Size: 24x24, Model: ")
    assert (tmp_path / "out" / "grid.png").is_file()
    called(generate, *flags, PROMPT, "--num_images=2", f"--out={tmp_path / 'alone'}")
    for own, among in ((0, 2), (1, 3)):  # picture k of a prompt does not depend on other prompts
        one, other = (
            np.asarray(Image.open(path), int)
            for path in (tmp_path / "alone" / f"0000{own}.png", tmp_path / "out" / f"0000{among}.png")
        )
        assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--expand=1,1",), "--expand needs four numbers of pixels, left,top,right,bottom"),
        (("--lora=a.safetensors",), "--lora is for published models"),
        (("--num_images=2", "--out={out}"), "is one picture, but 2 are drawn: name a folder"),
        (("--sampler=dpmpp_9z",), "dpmpp_9z"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run, flags, message, tmp_path):
    given = [f"--out={tmp_path / 'out'}", *(flag.format(out=tmp_path / "two.png") for flag in flags)]
    with pytest.raises(UserError, match=message) as error:
        called(generate, f"--workdir={run}", PROMPT, *given)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_session_goes_on_where_it_was(tmp_path, capsys):
    """The command makes two edits, undoes one and repeats it, which gives the same picture."""
    run, out = fresh_run(tmp_path / "run", scenes_config(config="configs/edits.py")), tmp_path / "session"
    given = saved(tmp_path / "in.png", picture(24, 24))
    called(edit, f"--workdir={run}", f"--image={given}", "--instruction=make the star green", f"--out={out}")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "000.png")), picture(24, 24))
    called(edit, f"--workdir={run}", "--instruction=paint the zebra blue", f"--out={out}", "--image_scale=1.5")
    assert "zebra" in capsys.readouterr().err
    second = np.asarray(Image.open(out / "002.png"))
    called(edit, f"--out={out}", "--undo")
    assert not (out / "002.png").exists()
    called(edit, f"--workdir={run}", "--instruction=paint the zebra blue", f"--out={out}", "--image_scale=1.5")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "002.png")), second)
    other = saved(tmp_path / "other.png", picture(24, 24)[::-1])
    with pytest.raises(UserError, match="began with another picture"):
        called(edit, f"--workdir={run}", f"--image={other}", "--instruction=change nothing", f"--out={out}")
    called(edit, f"--workdir={run}", "--judge=8", "--turns=2", f"--out={tmp_path / 'judged'}")
    assert (tmp_path / "judged" / "edits.json").is_file()
