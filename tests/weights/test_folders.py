"""Folders of the hub and of training programs: variants, shards, pipelines, and averages next to raw weights."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.weights import locate, read_config, read_state, read_weights
from tests.torch_writer import save_zip, tensors

ONE = {"a.w": np.float32([1, 2]), "b.w": np.float32([3])}
HALF = {name: (value / 2).astype(np.float16) for name, value in ONE.items()}
NAME = "diffusion_pytorch_model"


def model(folder, *, state=None, file=f"{NAME}.safetensors", config=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"_class_name": "UNet2DModel"}))
    save_file(state or ONE, folder / file)
    return folder


@pytest.mark.parametrize(
    ("files", "taken", "line"),
    [
        ([""], "", None),
        (["", "fp16"], "", None),
        (["fp16"], "fp16", "no weights but its variant 'fp16'"),
        (["bf16", "fp16"], "fp16", "no weights but its variant 'fp16'"),
        (["", "non_ema"], "", "average of the parameters.*raw weights there: the variant 'non_ema'"),
        (["non_ema"], "non_ema", "raw weights, not their average"),
        (["", "ema"], "ema", "the variant 'ema'"),
    ],
)
def test_variants(tmp_path, files, taken, line):
    for variant in files:
        state = HALF if variant == taken else {"other": np.float32([0])}
        model(tmp_path, state=state, file=f"{NAME}.{variant}.safetensors".replace("..", "."))
    found = read_weights(tmp_path)
    assert set(found.tensors) == set(HALF)
    told = " ".join(found.told())
    assert re.search(line or "^$", told)


def shard(number, count, variant="", style=0):
    if style:  # as in older versions
        return f"{NAME}.{variant}-{number:05d}-of-{count:05d}.safetensors"
    return f"{NAME}-{number:05d}-of-{count:05d}{variant and '.' + variant}.safetensors"


@pytest.mark.parametrize(("variant", "style"), [("", 0), ("fp16", 0), ("fp16", 1)])
@pytest.mark.parametrize("has_index", [True, False])
def test_shards(tmp_path, variant, style, has_index):
    names = [shard(number, 2, variant, style) for number in (1, 2)]
    for name, (tensor, value) in zip(names, ONE.items(), strict=True):
        save_file({tensor: value}, tmp_path / name)
    index = tmp_path / (f"{NAME}.safetensors.index.{variant}.json" if variant else f"{NAME}.safetensors.index.json")
    if has_index:
        index.write_text(json.dumps({"weight_map": dict(zip(ONE, names, strict=True))}))
    assert set(read_state(tmp_path)) == set(ONE)
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of the 2 shards of its weights: {names[1]}"):
        read_state(tmp_path)


def test_one_name_in_two_shards(tmp_path):
    names = [shard(number, 2) for number in (1, 2)]
    for name, more in zip(names, ("b", "c"), strict=True):
        save_file({"a": np.float32([1]), more: np.float32([2])}, tmp_path / name)
    assert set(read_state(tmp_path)) == {"a", "b", "c"}
    save_file({"a": np.float32([3])}, tmp_path / names[1])
    with pytest.raises(UserError, match=rf"{names[0]} and {names[1]} both have a, and not the same"):
        read_state(tmp_path)


def test_shards_of_two_sets(tmp_path):
    for count in (1, 2):
        for number in range(1, count + 1):
            save_file({f"a{number}": np.float32([count])}, tmp_path / shard(number, count))
    with pytest.raises(UserError, match="of 00001 and of 00002, and no index"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}', "\xff"],
)
def test_bad_indices(tmp_path, content):
    (tmp_path / f"{NAME}.safetensors.index.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=r"safetensors\.index\.json"):
        read_state(tmp_path)


def pipeline(path, parts):
    path.mkdir(exist_ok=True)
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.30", **parts}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def test_a_pipeline_is_read_by_its_network(tmp_path):
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    path = pipeline(tmp_path / "p", {**parts, "vae": ["diffusers", "AutoencoderKL"]})
    model(path / "unet")
    model(path / "vae", state={"v": ONE["a.w"]})
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text("{}")
    found = read_weights(path)
    assert set(found.tensors) == set(ONE)
    assert "is a pipeline: its unet is read" in found.told()[0]
    assert read_config(path)["_class_name"] == "UNet2DModel"
    for start in (path, path / "unet"):
        assert locate(start).scheduler == path / "scheduler" / "scheduler_config.json"
    assert locate(path / "vae").scheduler is not None


def test_an_average_is_taken_before_the_network_beside_it(tmp_path):
    """diffusers' training scripts write unet and unet_ema, and the average is preferred."""
    path = pipeline(tmp_path / "p", {"unet": ["diffusers", "UNet2DModel"]})
    model(path / "unet")
    model(path / "unet_ema", state=HALF)
    assert read_state(path)["a.w"].dtype == np.float16
    assert any("its average is taken, unet_ema" in line for line in read_weights(path).told())
    (line,) = read_weights(path / "unet").told()
    assert "taking raw weights: an average of them lies in" in line
    (path / "model_index.json").unlink()
    assert read_state(path)["a.w"].dtype == np.float16


def test_a_pipeline_of_other_networks_names_them(tmp_path):
    path = pipeline(tmp_path / "p", {"vae": ["diffusers", "AutoencoderKL"]})
    model(path / "vae")
    with pytest.raises(UserError, match=r"model_index\.json names no network.*vae \(AutoencoderKL\)"):
        read_state(path)
    (path / "model_index.json").write_text("[1]")
    with pytest.raises(UserError, match=r"model_index\.json"):
        read_state(path)


def test_files_of_training_programs(tmp_path):
    """U-ViT's folder for a step has the network, its average, the optimizer and the schedule."""
    for name, value in (("nnet", 1.0), ("nnet_ema", 0.5), ("optimizer", 9.0), ("lr_scheduler", 9.0)):
        save_zip(tmp_path / f"{name}.pth", tensors({"a.w": np.float32([value])}))
    assert read_state(tmp_path)["a.w"] == 0.5
    (tmp_path / "nnet_ema.pth").rename(tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"several files of weights: nnet\.pth, other\.pth"):
        read_state(tmp_path)


def test_what_there_is_instead_is_named(tmp_path):
    (tmp_path / "diffusion_flax_model.msgpack").write_bytes(b"\x81\xa6params\x80")
    with pytest.raises(UserError, match=r"no weights in.*diffusion_flax_model\.msgpack is a msgpack file \(Flax\)"):
        read_state(tmp_path)


def test_the_files_of_a_folder_are_named_when_they_are_damaged(tmp_path):
    model(tmp_path)
    (tmp_path / f"{NAME}.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=rf"{NAME}\.safetensors is damaged"):
        read_state(tmp_path)
