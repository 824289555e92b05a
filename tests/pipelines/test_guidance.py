"""Published models take any guidance rule that needs only their own predictions."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.samplers.guidance import GUIDANCE
from tests.pipelines.cases import GOLDEN

KINDS = {
    "noise": ("sd15", {"scheduler": "euler"}),
    "velocity": ("sd2", {"scheduler": "euler"}),
    "flow": ("sd3", {}),
    "heun": ("sd15", {"scheduler": "heun"}),
    "steered": ("sd15", {"scheduler": "euler", "controlnet": GOLDEN / "adapters" / "controlnet_a"}),
    "editor": (
        "sd15",
        {
            "scheduler": "euler",
            "unet": GOLDEN / "sd15_ip2p" / "unet",
            "pipeline_class": "StableDiffusionInstructPix2PixPipeline",
        },
    ),
}
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def drawn():
    """A function (kind, call) -> latents; each pipeline is read once."""
    pipes = {}

    def draw(kind, **call):
        if kind not in pipes:
            folder, parts = KINDS[kind]
            pipes[kind] = Pipeline.from_pretrained(GOLDEN / folder, **parts)
        asked = {"num_inference_steps": 3, "seed": 1, "output_type": "latent", "height": 32, "width": 32}
        return pipes[kind]("a red square", **{**asked, **call}).images

    return draw


@pytest.mark.parametrize("kind", ["noise", pytest.param("velocity", marks=pytest.mark.slow), "flow"])
def test_classifier_free_guidance_of_predictions_is_that_of_outputs(drawn, kind):
    """A linear rule gives the same result on noise, velocity and x0."""
    call = {"guidance_scale": 3.0, "negative_prompt": "snow"}
    np.testing.assert_allclose(
        drawn(kind, guidance="classifier_free", **call), drawn(kind, **call), rtol=1e-3, atol=1e-3
    )


def test_the_scales_of_an_editor_are_those_of_the_rule(drawn):
    call = {"image": PICTURE, "guidance_scale": 4.0, "height": None, "width": None}
    rule = {"name": "two_scales", "image_scale": 2.0}
    ours = drawn("editor", guidance=rule, **call)
    np.testing.assert_allclose(ours, drawn("editor", image_guidance_scale=2.0, **call), rtol=1e-3, atol=1e-3)
    assert np.abs(ours - drawn("editor", image_guidance_scale=1.0, **call)).max() > 1e-2


@pytest.mark.parametrize("guess_mode", [False, True])
def test_a_controlnet_steers_the_evaluations_of_a_rule_as_it_does_without(drawn, guess_mode):
    call = {"control_image": PICTURE, "guess_mode": guess_mode}
    np.testing.assert_allclose(
        drawn("steered", guidance="classifier_free", **call), drawn("steered", **call), rtol=1e-3, atol=1e-3
    )


def test_a_projection_that_keeps_all_and_an_empty_interval_change_nothing(drawn):
    plain, whole = drawn("noise", guidance_scale=1.0), drawn("noise", guidance="classifier_free")
    np.testing.assert_allclose(drawn("noise", guidance={"name": "apg", "eta": 1.0}), whole, rtol=1e-3, atol=1e-3)
    nowhere = {"name": "classifier_free", "interval": (1e-6, 1e-5)}
    np.testing.assert_allclose(drawn("noise", guidance=nowhere), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_every_option_changes_the_picture(drawn):
    made = [drawn("noise", guidance_scale=1.0), drawn("noise", guidance="classifier_free")]
    others = [
        {"name": "apg"},
        {"name": "apg", "momentum": -0.5},
        {"name": "classifier_free", "rescale": 0.7},
        {"name": "classifier_free", "interval": (0.5, 5.0)},
        {"name": "classifier_free", "reuse": 2},
    ]
    for rule in others:
        one = drawn("noise", guidance=rule)
        assert np.isfinite(one).all()
        assert all(np.abs(one - other).max() > 1e-3 for other in made), rule
        made.append(one)


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_every_rule_is_taken_or_refused_in_one_line(drawn, name):
    spec = {"name": name, **GUIDANCE._examples[name]}
    refusal = None
    try:
        found = drawn("noise", guidance=spec)
    except UserError as error:
        refusal = str(error)
    if refusal is None:
        assert np.isfinite(found).all()
    else:
        assert name in refusal
        assert "\n" not in refusal


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"guidance": "apg", "guidance_scale": 1.0}, "has no effect in a call with one evaluation a step"),
        ({"guidance": "apg", "guidance_rescale": 0.5}, "guidance_rescale is of no use to this model, or to guidance"),
        ({"guidance": {"name": "apg", "scale": 2.0}, "guidance_scale": 3.0}, "give only one of them"),
        ({"guidance": "adaptive"}, "adaptive"),
        ({"guidance": {"name": "classifier_free", "reuse": 2}, "kind": "heun"}, "needs steps of one evaluation"),
        ({"guidance": "autoguidance"}, "needs another network"),
        ({"guidance": {"name": "apg", "strength": 2}}, "strength"),
    ],
)
def test_what_does_not_fit_is_refused(drawn, call, said):
    with pytest.raises(UserError, match=said):
        drawn(**{"kind": "noise", **call})
