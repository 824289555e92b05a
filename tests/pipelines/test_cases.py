"""Whole pipelines reproduce every reference run from the same latents and draws, within the tolerances of its index."""

import numpy as np
import pytest

from diffusion_jax.pipelines.prompts import Asked, Reader
from tests.pipelines.cases import INDEX, NAMES, arguments, arrays, last, latents, pipeline

FAST = ("sd15_ddim_eta_rescale", "sd15_inpaint4_strength", "sdxl_microcond", "sd3_three_prompts", "flux_true_cfg")
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", CASES)
def test_states_and_pictures(name):
    found, tolerance, pipe = arrays(name), INDEX["cases"][name]["tolerance"], pipeline(name)
    call = arguments(name)
    made = pipe(**call, return_trajectory=True)
    prepared = pipe.prepared(**call)
    walk = prepared.walk
    scale = walk.grid.alphas if walk.unscaled else np.ones_like(walk.grid.alphas)
    states = [found[f"s{i}_latents"] for i in range(99) if f"s{i}_latents" in found]
    states = states[1:] if walk.sampler.nfe(9) == 10 else states  # the first try of PNDM
    errors = {}
    for i, state in enumerate(states):
        ours = np.asarray(made.trajectory[i + 1]) / scale[i + 1]
        errors[f"state {i}"] = np.abs(ours - latents(name, state)).max(), tolerance["latents"]
    assert len(states) in (0, len(made.trajectory) - 1)
    if "image" in found:
        errors["image"] = np.abs(made.images - found["image"]).max(), tolerance["image"]
    else:
        errors["latents"] = np.abs(made.images - last(states[-1])).max(), tolerance["latents"]
    print(name, errors)
    wrong = {what: pair for what, pair in errors.items() if not pair[0] <= pair[1]}
    assert not wrong


PROMPTS = (
    *FAST,
    "sdxl_no_negative",
    "sdxl_refiner_last40",
    "sd15_clip_skip",
    "sd3_without_t5",
    "sd15_nocfg_long_unicode",
)


@pytest.mark.parametrize(
    "name",
    [
        name if name in PROMPTS else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
        if "enc0_0" in arrays(name) and name != "ideogram4"  # its prompts are packed with the picture
    ],
)
def test_what_the_network_is_told_of_prompts(name):
    """The embeddings of prompts and of negative prompts equal the reference's."""
    found, call, pipe = arrays(name), arguments(name), pipeline(name)
    tolerance = INDEX["cases"][name]["tolerance"].get("prompt_embeds", 1e-4)
    told = pipe.prepared(**call).rows_told()
    np.testing.assert_allclose(told[0]["context"], found["enc0_0"], atol=tolerance)
    if len(told) > 1 and not name.startswith("flux"):
        np.testing.assert_allclose(told[1]["context"], found["enc0_1"], atol=tolerance)
    if "pooled" in told[0]:
        pooled = found["enc0_1" if name.startswith("flux") else "enc0_2"]
        np.testing.assert_allclose(told[0]["pooled"], pooled, atol=tolerance)


def test_a_prompt_that_is_cut_says_what_is_lost():
    pipe, prompt = pipeline("sd15_pndm"), "a b " * 50  # each letter is one token
    reader = Reader(pipe.parts)
    pipe.family.encode(reader, Asked(((prompt,),)))
    (remark,) = reader.remarks
    lost = remark.partition("left out is: ")[2].strip("'")
    assert prompt.strip().endswith(lost)
    kept = prompt.strip().removesuffix(lost)
    assert len(pipe.parts.tokenizers["tokenizer"].encode([kept])[0]) == 75  # plus the start and end tokens
