"""Reading and writing folders keeps all tensors and fields, and every error is one line."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.weights.reading import write_state
from diffusion_jax.weights.streaming import DTYPES, Streamed
from tests.pipelines.cases import GOLDEN


@pytest.fixture(scope="module")
def sdxl():
    return Pipeline.from_pretrained(GOLDEN / "sdxl")


def tensors(folder):
    return {file.relative_to(folder).parent: Streamed([file]) for file in sorted(folder.rglob("*.safetensors"))}


def same_folder(first, second):
    ours, theirs = tensors(first), tensors(second)
    assert set(ours) == set(theirs)
    for part, stored in theirs.items():
        assert ours[part].dtypes == stored.dtypes
        for name, value in stored.items():
            assert ours[part][name].tobytes() == value.tobytes(), f"{part}: {name}"
    for file in sorted(second.rglob("*.json")):
        assert json.loads((first / file.relative_to(second)).read_text()) == json.loads(file.read_text())


def test_a_folder_is_written_as_it_was_read(sdxl, tmp_path):
    sdxl.save_pretrained(tmp_path / "copy")
    same_folder(tmp_path / "copy", GOLDEN / "sdxl")
    assert (tmp_path / "copy" / "tokenizer" / "merges.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd2", "sd3", "flux", "ideogram4"])
def test_every_family_is_written_as_it_was_read(name, tmp_path):
    Pipeline.from_pretrained(GOLDEN / name).save_pretrained(tmp_path / "copy")
    same_folder(tmp_path / "copy", GOLDEN / name)


def test_parameters_are_held_in_the_type_and_at_the_place_that_is_asked_for():
    seen = []

    def place(part, path, leaf):
        seen.append((part, path))
        return jax.device_put(leaf, jax.devices()[1])

    pipe = Pipeline.from_pretrained(GOLDEN / "sd15", dtype=jnp.bfloat16, place=place)
    leaves = jax.tree.leaves(pipe.parts.models["unet"].params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
    assert all(leaf.devices() == {jax.devices()[1]} for leaf in leaves)
    assert {part for part, _ in seen} == {"unet", "vae", "text_encoder"}


@pytest.fixture
def folder(tmp_path):
    """A copy of sd15 that a test may damage."""
    return shutil.copytree(GOLDEN / "sd15", tmp_path / "sd15")


def spoil_missing(folder):
    shutil.rmtree(folder / "vae")
    return "vae"


def spoil_field(folder):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "act_fn": "a_new_one"}))
    return "act_fn"


def spoil_shard(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "truncated"


def spoil_class(folder):
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "StableCascadePipeline"}))
    return "StableCascadePipeline"


def spoil_scheduler(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "skip_prk_steps": False}))
    return "skip_prk_steps"


def spoil_tokenizer(folder):
    (folder / "tokenizer" / "merges.txt").unlink()
    return "merges.txt"


@pytest.mark.parametrize(
    "spoil", [spoil_missing, spoil_field, spoil_shard, spoil_class, spoil_scheduler, spoil_tokenizer]
)
def test_a_spoiled_folder_is_refused_in_one_line(folder, spoil):
    named = spoil(folder)
    with pytest.raises(UserError, match=named) as caught:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path):
    from safetensors.numpy import save_file

    lora = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({"unet.mid_block.attentions.0.proj_in.lora_A.weight": np.zeros((4, 4), np.float32)}, lora)
    with pytest.raises(UserError, match="LoRA"):
        Pipeline.from_pretrained(lora)
    with pytest.raises(UserError, match=r"pytorch_lora_weights\.safetensors"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no such"):
        Pipeline.from_pretrained(tmp_path / "nowhere")


PICTURE = Image.new("RGB", (32, 32))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"height": 33}, "height=33"),
        ({"image": PICTURE, "mask_image": Image.new("L", (16, 16))}, "mask_image is 16 x 16"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c", "d", "e"]}, "3 of negative_prompt"),
        ({"prompt_3": "a"}, "three text encoders"),
        ({"strength": 0.5}, "image="),
        ({"image": PICTURE, "strength": 0.01, "num_inference_steps": 5}, "steps is left"),
        ({"eta": 0.5}, "eta"),
        ({"true_cfg_scale": 2.0}, "true_cfg_scale"),
        ({"control_image": PICTURE}, "ControlNet"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2000}, "num_inference_steps"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "latents"),
        ({"denoising_end": 1.5}, "denoising_end"),
        ({"output_type": "pt"}, "output_type"),
        ({"draws": {"noise": np.zeros(1)}}, "draws"),
        ({"clip_skip": 9}, "clip_skip"),
        ({"image": PICTURE, "mask_image": PICTURE, "padding_mask_crop": 2}, "black"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_one_line(sdxl, call, named):
    with pytest.raises(UserError, match=named) as caught:
        sdxl(**{"prompt": "a", **call})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_loading_needs_little_more_than_the_weights(tmp_path):
    """Loading a text encoder of about 200 MB takes at most 1.3 times its weights at peak, in a separate process."""
    script = Path(__file__).parent / "fat_folder.py"
    said = subprocess.run(
        [sys.executable, script, tmp_path], check=True, capture_output=True, text=True, cwd=GOLDEN.parents[2]
    ).stdout
    for line in said.splitlines():
        weights, peak = line.split()[1:]
        assert float(peak) <= 1.3 * float(weights), line
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        "[1]",
        '{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": [0, 4611686018427387904], "data_offsets": [0, 0]}}',
        '{"a": {"dtype": "F32", "shape": "12", "data_offsets": [0, 9]}}',
        "\xff",
    ],
)
def test_headers_that_are_none(tmp_path, header):
    content = header.encode("latin-1")
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(8))
    with pytest.raises(UserError, match=r"m\.safetensors is truncated or no safetensors file"):
        Streamed([tmp_path / "m.safetensors"])


def test_tensors_of_every_type_are_read_from_their_files(tmp_path):
    values = np.arange(6).reshape(2, 3)
    state = {str(np.dtype(dtype)): values.astype(dtype) for dtype in DTYPES.values() if "float8" not in str(dtype)}
    write_state(tmp_path / "m.safetensors", {**state, "empty": np.zeros((0, 2), np.float32), "one": np.float32(3)})
    found = Streamed([tmp_path / "m.safetensors"])
    assert "bfloat16" in found
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes(), name
    assert found["empty"].shape == (0, 2)
    assert found["one"] == 3
