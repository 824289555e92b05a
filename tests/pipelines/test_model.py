"""A published folder as a Model gets the conditions of its pipeline and the process of its scheduler."""

import jax
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import Pipeline
from tests.pipelines.cases import GOLDEN

TEXTS = ["a red fox", ""]


@pytest.mark.parametrize("name", ["sd15", "sdxl", pytest.param("sd3", marks=pytest.mark.slow),
                                  pytest.param("flux", marks=pytest.mark.slow)])  # fmt: skip
def test_the_network_is_told_what_the_pipeline_tells_it(name):
    model, params = dj.load_model(GOLDEN / name)
    pipe = Pipeline.from_pretrained(GOLDEN / name)
    told = pipe.prepared(TEXTS, guidance_scale=1.0).rows_told()[0]
    text = model.conditioning.parts[0]
    found = jax.jit(lambda p, b: text(p, b, 2))(params["conditioning/context"], text.prepare({"text": TEXTS}))
    for slot in found:
        np.testing.assert_allclose(found[slot], told[slot], atol=1e-4)
    null = text.null(params["conditioning/context"], 1)["context"][0]
    expected = np.zeros_like(found["context"][1]) if name == "sdxl" else found["context"][1]
    np.testing.assert_allclose(null, expected, atol=1e-4)
    if "sizes" in told:
        sizes = model.conditioning.parts[1].null(None, 2)["sizes"]
        np.testing.assert_array_equal(sizes, told["sizes"])
    assert model.data.shape == (32, 32, 3)
    assert model.diffused.shape[:2] == (8, 8)


def test_its_process_is_that_of_its_scheduler():
    model, _ = dj.load_model(GOLDEN / "sd15")
    schedule = model.process.schedule
    assert float(schedule.alpha(1.0) ** 2) == pytest.approx(0.0046599, rel=1e-4)  # the last value of Stable Diffusion
    assert float(model.process.time_input(schedule, 1.0)) == 999


def test_a_model_that_is_a_pipeline_only_says_so():
    with pytest.raises(UserError, match=r"diffusion_jax\.Pipeline"):
        dj.load_model(GOLDEN / "ideogram4")


@pytest.mark.slow
def test_it_is_sampled_in_one_call():
    """One call samples with the guidance of the model's family; a negative prompt changes the picture."""
    model, params = dj.load_model(GOLDEN / "sd15")
    assert model.sampling.guidance == {"name": "classifier_free", "scale": 7.5}
    one, away = (
        np.asarray(dj.sample(model, params, prompts=TEXTS[0], negative_prompt=said, num_inference_steps=2))
        for said in (None, "a blue dog")
    )
    assert one.shape == (1, 32, 32, 3)
    assert (one != away).any()
