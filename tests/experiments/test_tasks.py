"""Tasks, guidance rules, projections and inversions through the command, on a small run on digits."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.samplers import GUIDANCE, INVERSIONS, PROJECTIONS
from diffusion_jax.tasks import TASKS
from experiments import sample
from experiments.evaluating import requests
from experiments.ground.renamed import with_new_names
from tests.processes import ROOT

DIGIT, MASK = ROOT / "tests" / "golden" / "digit.png", ROOT / "tests" / "golden" / "mask.png"


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def do(finished, capsys):
    """Run the sample command in this process; returns its output. Other tests cover how a process ends."""

    def run(*arguments, workdir=finished[0]):
        sample.FLAGS.read(["sample", f"--workdir={workdir}", *map(str, arguments)])
        try:
            sample.main([])
        finally:
            sample.FLAGS.assume_defaults()
        return capsys.readouterr().out

    return run


def test_every_task_has_a_door():
    others = {"from_latents", "instruct"}  # available as --latents and experiments.edit
    assert set(sample.READS) == {"sample", *TASKS} - others
    for name, task in ((name, TASKS.example(name)) for name in TASKS if name not in others):
        assert set(task.needs) <= set(sample.READS[name])


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "dps")) for n in PROJECTIONS])
def test_inpainting_leaves_what_is_outside_the_mask(do, tmp_path, name):
    out = tmp_path / "in.png"
    arguments = ("--task=inpaint", f"--image={DIGIT}", f"--mask={MASK}", f"--projection={name}", "--steps=4")
    text = do(*arguments, "--label=7", f"--out={out}")
    drawn, given, mask = pixels(out), pixels(DIGIT), pixels(MASK) > 0
    assert drawn.shape == given.shape == (8, 8)
    np.testing.assert_array_equal(drawn[~mask], given[~mask])
    assert (drawn[mask] != given[mask]).any()
    assert "network evaluations" in text


def test_a_picture_of_several_is_that_of_one(command, finished, tmp_path):
    """Result i depends only on the seed and i; the batch size changes only the rounding."""
    arguments = (f"--workdir={finished[0]}", "--task=inpaint", f"--image={DIGIT}", f"--mask={MASK}", "--label=3")
    command.run("sample", *arguments, f"--out={tmp_path / 'one.png'}")
    command.run("sample", *arguments, "--num_samples=5", "--batch_size=2", f"--out={tmp_path / 'five.npz'}")
    five = np.load(tmp_path / "five.npz")["images"]
    assert five.shape == (5, 8, 8, 1)
    assert np.abs(five[0, ..., 0].astype(int) - pixels(tmp_path / "one.png")).max() <= 1
    assert len({picture.tobytes() for picture in five}) == 5
    assert (tmp_path / "five.png").stat().st_size > 0


@pytest.mark.parametrize("name", list(INVERSIONS))
def test_there_and_back(do, tmp_path, name):
    """A picture is inverted to noise and sampled back; the command reuses and reports the settings of the inversion."""
    latents, back = tmp_path / "z.npz", tmp_path / "back.png"
    options = [f"--inversion={name}", "--steps=20"] + (["--set=inversion.iterations=20"] if name == "ddim" else [])
    text = do("--task=invert", f"--image={DIGIT}", "--label=7", f"--out={latents}", *options)
    assert f"back with --latents={latents}" in text
    with np.load(latents) as stored:
        assert stored["latents"].shape == (1, 8, 8, 1)
        assert json.loads(stored["made"].tobytes())["label"] == "7"
    text = do(f"--latents={latents}", f"--out={back}")
    assert f"by sampler {'rk45' if name == 'rk45' else 'ddim'} in 20 steps, label 7" in text
    assert np.abs(pixels(back).astype(int) - pixels(DIGIT)).max() <= (2 if name == "rk45" else 40)


GOOD = {"sampler": "ddim", "steps": 2, "label": None}


@pytest.mark.parametrize(
    "how",
    [
        *({**GOOD, "steps": steps} for steps in ("x", -3, 0, 2.5, True, None, 10**22, float("nan"), [2])),
        *({**GOOD, "sampler": sampler} for sampler in (7, None, ["ddim"])),
        *({**GOOD, "label": label} for label in (3, ["3"], {"a": 1})),
        *({name: GOOD[name] for name in GOOD if name != gone} for gone in GOOD),
        {},
    ],
)
def test_settings_of_noise_that_can_not_be(how, tmp_path):
    stored = np.frombuffer(json.dumps(how).encode(), np.uint8)
    with pytest.raises(UserError, match=r"--latents=.* is damaged: it says") as error:
        requests._settings(stored, str(tmp_path / "z.npz"))
    assert "\n" not in str(error.value)


def test_edits_and_variations(do, tmp_path):
    given = pixels(DIGIT).astype(int)
    moved = {}
    for name, *options in (
        ("same", "--task=edit", "--label=7", "--source_label=7", "--inversion=rk45", "--steps=8"),
        ("other", "--task=edit", "--label=3", "--source_label=7", "--inversion=rk45", "--steps=8"),
        ("little", "--task=variation", "--strength=0.3", "--label=7", "--steps=12"),
        ("all", "--task=variation", "--strength=1", "--steps=12"),
    ):
        out = tmp_path / f"{name}.png"
        do(f"--image={DIGIT}", *options, f"--out={out}")
        moved[name] = np.abs(pixels(out).astype(int) - given).mean()
    assert moved["same"] < 2
    assert moved["other"] > moved["same"]
    assert moved["little"] < moved["all"]


GUIDED = {
    "none": (),
    "classifier_free": ("--guidance_scale=2", "--set=guidance.rescale=0.7"),
    "negative": ("--guidance_scale=2", "--set=guidance.negative=1"),
    "autoguidance": ("--guidance_scale=2", "--guide={run}", "--guide_ema=params"),
    "apg": ("--guidance_scale=4", "--set=guidance.momentum=-0.5", "--set=guidance.norm_threshold=2.5"),
    "dynamic_threshold": ("--guidance_scale=8", "--set=guidance.interval=(0.1, 20.0)"),
    "classifier": ("--guidance_scale=3",),
}


@pytest.mark.parametrize(  # trains a classifier first
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "classifier" else name for name in GUIDANCE]
)
def test_every_rule_is_reached_by_flags(do, finished, tmp_path, name):
    arguments = ("--num_samples=4", "--labels=7", f"--guidance={name}")
    if name == "two_scales":  # for networks conditioned on a picture and a text
        with pytest.raises(
            UserError, match="towards 'image' and another condition, but this network is asked for label"
        ):
            do(*arguments, "--guidance_scale=2")
        return
    options = [option.format(run=finished[0]) for option in GUIDED[name]]
    text = do(*arguments, *options, f"--out={tmp_path / 'guided.npz'}")
    factor = 1 if name == "none" else 2
    assert f", {3 * factor} network evaluations each" in text or name == "dynamic_threshold"
    do(*arguments[:-1], f"--out={tmp_path / 'plain.npz'}")
    guided, plain = (np.load(tmp_path / f"{file}.npz")["images"].astype(int) for file in ("guided", "plain"))
    assert (np.abs(guided - plain).max() > 0) == (name != "none")


def test_a_rule_is_reached_by_config_and_an_evaluation_says_it(command, finished, tmp_path):
    """The guidance rule of the config is used in training samples, and that of flags in experiments.evaluate."""
    arguments = command.train_arguments(
        tmp_path / "run", "--config.train.steps=20", "--config.sampling.guidance.name=apg",
        "--config.sampling.guidance.scale=2.0",
    )  # fmt: skip
    command.run("train", *arguments)
    settings = json.loads((tmp_path / "run" / "evaluation.json").read_text())["settings"]
    assert settings["guidance"]["name"] == "apg"
    assert settings["network_evaluations"] == 6
    out = tmp_path / "numbers.json"
    flags = ("--guidance=apg", "--guidance_scale=3", "--set=guidance.eta=0.5", "--metrics=nearest_neighbours")
    command.run("evaluate", f"--workdir={finished[0]}", *flags, "--num_samples=10", f"--out={out}")
    found = json.loads(out.read_text())["settings"]["guidance"]
    assert (found["name"], found["scale"], found["eta"]) == ("apg", 3.0, 0.5)


def test_likelihood_by_command(command, finished, tmp_path):
    """experiments.evaluate has a metric for the bits per dimension of a model."""
    out = tmp_path / "bits.json"
    command.run("evaluate", f"--workdir={finished[0]}", "--metrics=bits_per_dim", "--num_samples=10", f"--out={out}")
    assert 0 < json.loads(out.read_text())["bits_per_dim"]["bits_per_dim"] < 20


def picture(path, size, value=255, mode="L"):
    Image.new(mode, (size, size), value).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task=inpaint",), "--task=inpaint needs --image="),
        (("--task=inpaint", "--image={digit}"), "--task=inpaint needs --mask="),
        (("--task=inpaint", "--image={tmp}/no.png", "--mask={mask}"), "--image={tmp}/no.png: there is no file"),
        (("--task=inpaint", "--image={big}", "--mask={mask}"), "is 16x16 pixels, but the run's data is 8x8"),
        (
            ("--task=inpaint", "--image={digit}", "--mask={big}"),
            "is 16x16 pixels, but the run's data is 8x8: they must have",
        ),
        (("--task=inpaint", "--image={digit}", "--mask={digit}"), "has grey pixels: a mask is white in the"),
        (("--task=inpaint", "--image={digit}", "--mask={black}"), "is all black, so nothing would be drawn"),
        (("--task=inpaint", "--image={digit}", "--mask={mask}", "--label=12"), "there is no class 12"),
        (("--task=inpaint", "--image={digit}", "--mask={mask}", "--out=x.jpg"), "--out must end in .png or .npz"),
        (("--task=inpaint", "--image={digit}", "--mask={mask}", "--projection=repant"), "did you mean 'repaint'"),
        (
            ("--task=inpaint", "--image={digit}", "--mask={mask}", "--projection=repaint", "--sampler=dpmpp_2m"),
            "projection repaint repeats steps, which sampler DPMSolverPP2M cannot do",
        ),
        (
            ("--task=inpaint", "--image={digit}", "--mask={mask}", "--guidance_scale=2"),
            "needs a condition to guide towards: give --label, or use scale 1",
        ),
        (("--task=variation", "--image={digit}", "--mask={mask}"), "does not read --mask; it is for --task=inpaint"),
        (("--task=variation", "--image={digit}", "--strength=0"), "--strength=0 would leave the picture as it is"),
        (
            ("--task=edit", "--image={digit}", "--sampler=ddpm"),
            "returns along the flow, but sampler DDPM draws noise",
        ),
        (("--task=edit", "--image={digit}", "--set=inversion.iteration=2"), "did you mean 'iterations'"),
        (("--task=invert", "--image={digit}", "--out=x.png"), "--out must end in .npz"),
        (("--latents={digit}",), "is damaged or not an .npz file"),
        (("--latents={mask}", "--labels=3"), "--labels are for samples drawn from noise"),
        (("--task=invert", "--image={digit}", "--num_samples=5"), "--task=invert does not read --num_samples"),
        (("--task=invert", "--image={digit}", "--guidance_scale=5"), "--task=invert does not read --guidance_scale"),
        (("--task=invert", "--image={digit}", "--sampler=heun"), "--task=invert does not read --sampler"),
        (("--out={tmp}/folder.png",), "folder.png is a folder, not a file to write"),
        (("--task=variation", "--image={big}", "--out={big}"), "and it is read ({big}): give another --out"),
        (("--task=variation", "--num_samples=2", "--image={big}", "--out={tmp}/big.npz"), "and it is read ({big})"),
        (("--image={digit}",), "--task=sample does not read --image"),
        (("--guidance=apgg",), "unknown guidance rule 'apgg'; did you mean 'apg'"),
        (("--guidance=apg", "--guide=runs/x"), "--guide is for guidance autoguidance, but --guidance is apg"),
        (("--guidance=autoguidance", "--guidance_scale=2"), "away from a worse network, but none is named"),
        (("--guidance=negative", "--guidance_scale=2"), "needs a description of what to avoid"),
        (("--negative_prompt=eleven", "--guidance_scale=2"), "unknown class 'eleven'"),
        (("--set=sampler.eta=1",), "it sets guidance.OPTION, projection.OPTION, inversion.OPTION"),
        (
            ("--guidance=apg", "--guidance_scale=2", "--set=guidance.momentum=-0.5", "--sampler=rk45"),
            "within its own loop, where guidance with momentum cannot keep its state",
        ),
        (("--guidance_scale=2", "--set=guidance.interval=(2, 1)"), "with low below high"),
    ],
)
def test_bad_requests_are_one_clear_line(do, tmp_path, arguments, message):
    files = {"digit": DIGIT, "mask": MASK, "tmp": tmp_path}
    (tmp_path / "folder.png").mkdir()
    files |= {"big": picture(tmp_path / "big.png", 16), "black": picture(tmp_path / "black.png", 8, 0)}
    with pytest.raises(UserError) as refused:
        do(*(text.format(**files) for text in arguments))
    assert message.format(**files) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_config_of_before_is_read_in_the_new_names(do, finished, tmp_path):
    """A workdir with old field names in config.json gives the same samples as the new names, bit for bit."""
    old = tmp_path / "old"
    shutil.copytree(finished[0], old)
    config = json.loads((old / "config.json").read_text())
    for name in ("guidance", "projection", "inversion"):
        del config["sampling"][name]
    config["sampling"] |= {"guidance_scale": 2.0, "guidance_interval": [0.1, 50.0], "guide": "", "guide_ema": ""}
    (old / "config.json").write_text(json.dumps(config))
    do("--num_samples=4", f"--out={tmp_path / 'old.npz'}", workdir=old)
    flags = ("--guidance_scale=2", "--set=guidance.interval=(0.1, 50.0)")
    do("--num_samples=4", *flags, f"--out={tmp_path / 'new.npz'}")
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["images"] for name in ("old", "new")))
    auto = ConfigDict({"sampling": {"guidance_scale": 2.0, "guide": "runs/x", "guide_ema": ""}})
    found = with_new_names(auto).sampling
    assert found.guidance.to_dict() == {
        "name": "autoguidance", "scale": 2.0, "interval": (), "rescale": 0.0, "guide": "runs/x", "guide_ema": "",
    }  # fmt: skip
    assert "guidance_scale" not in found
