"""Adapters of pipelines give the reference's pictures, and stay correct when loaded, fused and written."""

import contextlib

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import Pipeline
from tests.pipelines.cases import GOLDEN, INDEX, arguments, arrays, pipeline

FILES = GOLDEN.parent / "adapters"
WITH_LORA = sorted(
    name
    for name, case in INDEX["cases"].items()
    if "lora" in case["components"] and (GOLDEN / "cases" / f"{name}.npz").is_file()
)
FAST = ("sd15_lora_two", "sd15_dora_peft")
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WITH_LORA]
CALL = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np", "guidance_scale": 3.0}


def file_of(name):
    return FILES / name.rpartition("/")[2].removeprefix("lora_")


def test_new_words_give_the_references_pictures():
    """Learned words with one vector, with three, and from A1111's file give the reference's picture."""
    name = "sd15_textual_inversion"
    pipe = pipeline(name)
    for file, word in INDEX["cases"][name]["components"]["textual_inversion"]:
        assert pipe.load_textual_inversion(file_of(file), token="" if word.startswith("<") else word) == word
    made = pipe(**arguments(name)).images
    np.testing.assert_allclose(made, arrays(name)["image"], atol=INDEX["cases"][name]["tolerance"]["image"])
    with pytest.raises(UserError, match="has a token '<style>' already"):
        pipe.load_textual_inversion(FILES / "learned_embeds_3.safetensors")
    with pytest.raises(UserError, match="is not a file of textual inversion"):
        pipe.load_textual_inversion(FILES / "kohya.safetensors")


@pytest.fixture
def sd15():
    pipe = pipeline("sd15_lora_two")
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    yield pipe
    pipe.unfuse_lora()
    pipe.unload_lora_weights()


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_the_references(name):
    case, pipe = INDEX["cases"][name], pipeline(name)
    for number, (file, weight) in enumerate(case["components"]["lora"]):
        pipe.load_lora_weights(file_of(file), adapter_name=f"{number}", weight=weight)
    made = pipe(**arguments(name)).images
    np.testing.assert_allclose(made, arrays(name)["image"], atol=case["tolerance"]["image"])


def test_what_is_loaded_fused_written_and_taken_out(sd15, tmp_path):
    plain = sd15("a fox", **CALL).images
    before = jax.tree.map(np.asarray, sd15.parts.models["unet"].params)
    sd15.load_lora_weights(FILES / "kohya.safetensors", adapter_name="style")
    whole = sd15("a fox", **CALL).images
    assert np.abs(whole - plain).max() > 0.05
    scaled = sd15("a fox", **CALL, cross_attention_kwargs={"scale": 0.8}).images
    sd15.set_adapters("style", 0.8)
    half = sd15("a fox", **CALL).images
    np.testing.assert_array_equal(half, scaled)
    sd15.set_adapters("style", 0.0)
    np.testing.assert_array_equal(sd15("a fox", **CALL).images, plain)
    sd15.set_adapters("style", 0.8)
    sd15.fuse_lora()
    np.testing.assert_allclose(sd15("a fox", **CALL).images, half, atol=1e-5)
    with pytest.raises(UserError, match="are fused into the parameters"):
        sd15.set_adapters("style", 0.5)
    sd15.unfuse_lora()
    sd15.set_adapters("style", 1.0)
    sd15.save_lora_weights(tmp_path / "own.safetensors", kohya=True)
    sd15.unload_lora_weights()
    jax.tree.map(np.testing.assert_array_equal, sd15.parts.models["unet"].params, before)
    sd15.load_lora_weights(tmp_path / "own.safetensors", adapter_name="again")
    np.testing.assert_allclose(sd15("a fox", **CALL).images, whole, atol=1e-5)


def test_another_weight_compiles_nothing(sd15):
    sd15.load_lora_weights(FILES / "kohya.safetensors", adapter_name="style")
    with compilations() as first:
        sd15("a fox", **{**CALL, "num_inference_steps": 3})
    assert "jit(draw)" in first, "another number of steps is another program"
    with compilations() as second:
        for weight in (0.3, 0.7):
            sd15.set_adapters("style", weight)
            sd15("a fox", **{**CALL, "num_inference_steps": 3})
    assert not second


@contextlib.contextmanager
def compilations():
    """Record the names of the programs that XLA compiles within the block."""
    names, on = [], [True]

    def listen(event, seconds, **facts):
        if on and event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(str(facts.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        on.clear()


def test_what_is_of_another_model_is_named(sd15):
    with pytest.raises(UserError, match=r"mlp.fc1 is \[32, 16\] there and \[64, 32\] here: it is for another base"):
        sd15.load_lora_weights(FILES / "sdxl.safetensors")
    with pytest.raises(UserError, match="unknown adapter 'style'"):
        sd15.set_adapters("style")
    with pytest.raises(UserError, match="no file or folder"):
        sd15.load_lora_weights(FILES / "nothing.safetensors")
    assert not sd15.adapted.loaded
    with pytest.raises(UserError, match="of a LoRA adapter, which changes a model and is none"):
        Pipeline.from_pretrained(FILES / "kohya.safetensors")
