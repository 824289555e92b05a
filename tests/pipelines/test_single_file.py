"""A whole model in one file with the authors' key layout is converted from a folder and back without changes."""

import dataclasses
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.pipelines.parts import read_parts
from diffusion_jax.pipelines.single_file import is_single_file, layout_of, read_single_file, write_single_file
from diffusion_jax.weights.reading import read_state, write_state
from tests.pipelines.cases import GOLDEN

SLOW = pytest.mark.slow
# Names of tensors that the authors' programs expect in each file.
NAMES = {
    "sd15": {"cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"},
    "sd2": {
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        "cond_stage_model.model.ln_final.bias",
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.text_projection",
        "model.diffusion_model.label_emb.0.0.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
    },
    "sd3": {
        "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",
        "text_encoders.t5xxl.transformer.shared.weight",
        "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding.weight",
    },
    "flux": {"model.diffusion_model.single_blocks.0.linear1.weight", "first_stage_model.decoder.conv_in.weight"},
}


@pytest.mark.parametrize("name", ["sd2", *(pytest.param(name, marks=SLOW) for name in ("sd15", "sdxl", "sd3", "flux"))])
def test_from_a_folder_to_a_file_and_back_no_number_changes(name, tmp_path):
    folder, file = GOLDEN / name, tmp_path / "model.safetensors"
    before = read_parts(folder)
    assert write_single_file(before, file) == name
    state = read_state(file)
    assert layout_of(list(state)) == name
    assert is_single_file(file)
    assert set(state) >= NAMES[name]
    parts, notes = read_single_file(file, config=folder)
    assert notes == ()
    parts.save(tmp_path / "folder")
    again = read_parts(tmp_path / "folder")
    assert again.scheduler == before.scheduler
    assert again.index == before.index
    assert set(again.models) == set(before.models)
    for part, model in before.models.items():
        assert again.models[part].config == model.config
        jax.tree.map(np.testing.assert_array_equal, again.models[part].params, model.params)
        assert again.models[part].widest == model.widest


def test_the_refiner_is_known_by_its_one_encoder():
    names = ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.weight"]
    assert layout_of(names) == "sdxl_refiner"


def test_a_file_in_its_folder_needs_no_other(tmp_path):
    folder = shutil.copytree(GOLDEN / "sd15", tmp_path / "sd15")
    write_single_file(read_parts(folder), folder / "v1-5-pruned.safetensors")
    with pytest.warns(
        UserWarning, match=r"sizes, scheduler and tokenizers of v1-5-pruned.safetensors: those of .*sd15"
    ):
        pipe = Pipeline.from_single_file(folder / "v1-5-pruned.safetensors")
    assert pipe.parts.scheduler.kind == read_parts(GOLDEN / "sd15").scheduler.kind


def test_a_network_alone_takes_the_rest_from_the_folder(tmp_path):
    folder, file = GOLDEN / "flux", tmp_path / "flux1.safetensors"
    write_single_file(read_parts(folder), tmp_path / "whole.safetensors")
    start = "model.diffusion_model."
    whole = read_state(tmp_path / "whole.safetensors")
    write_state(file, {name.removeprefix(start): v.astype(ml_dtypes.bfloat16) for name, v in whole.items()
                       if name.startswith(start)})  # fmt: skip
    parts, _ = read_single_file(file, config=folder)
    assert set(parts.models) == set(read_parts(folder).models)
    assert {str(dtype) for dtype in parts.models["transformer"].dtypes.values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {**state, "unheard.of": np.zeros(1, np.float32)},
            "unheard.of and 0 more tensors belong to no part",
        ),
        (lambda state: {k: v for k, v in state.items() if "time_embed.0.weight" not in k}, "1 missing: time_embed.0"),
        (lambda state: {"lora_unet_x.lora_down.weight": np.zeros((1, 2), np.float32)}, "it is an adapter"),
        (lambda state: {"some.weight": np.zeros((1, 2), np.float32)}, "is not a model in one file"),
    ],
)
def test_what_is_wrong_is_one_line(change, message, tmp_path):
    whole = tmp_path / "whole.safetensors"
    write_single_file(read_parts(GOLDEN / "sd15"), whole)
    write_state(tmp_path / "changed.safetensors", change(read_state(whole)))
    with pytest.raises(UserError, match=message) as caught:
        read_single_file(tmp_path / "changed.safetensors", config=GOLDEN / "sd15")
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_one_line(tmp_path):
    write_single_file(read_parts(GOLDEN / "sd15"), tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"truncated|bytes"):
        read_single_file(tmp_path / "m.safetensors", config=GOLDEN / "sd15")


def test_what_has_no_such_layout_says_so(tmp_path):
    parts = dataclasses.replace(read_parts(GOLDEN / "sd15"), index={"_class_name": "Ideogram4Pipeline"})
    with pytest.raises(UserError, match="a Ideogram4Pipeline cannot be written as one file: there are: sdxl"):
        write_single_file(parts, tmp_path / "m.safetensors")
