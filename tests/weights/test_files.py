"""Weight files: supported formats, and damaged or hostile files, which are never executed or half loaded."""

import collections
import json
import os
import pathlib
import pickle
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS, init_params, parameter_shapes
from diffusion_jax.weights import fitted, read_state, weight_map, write_state
from tests.inception_weights import random_tensor
from tests.torch_writer import Call, Global, save_legacy, save_zip, tensor

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "weights"


A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1.5, -2.0], np.float16)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_torch_files_of_both_forms(tmp_path, save):
    path = tmp_path / "weights.pt"
    found = {
        "args": Call(Global("argparse", "Namespace"), ()),
        "ema": collections.OrderedDict(
            [
                ("a", tensor("0", A)),
                ("a.T", tensor("0", A, shape=(3, 2), strides=(1, 3))),
                ("b", tensor("1", B, "HalfStorage")),
            ]
        ),
        "model": {"module.a": tensor("2", 10 * A)},
    }
    save(path, found)
    state = read_state(path)
    np.testing.assert_array_equal(state["a"], A)
    np.testing.assert_array_equal(state["a.T"], A.T)
    np.testing.assert_array_equal(state["b"], B)
    assert state["b"].dtype == np.float16
    np.testing.assert_array_equal(read_state(path, entry="model")["a"], 10 * A)  # the prefix "module." is removed
    with pytest.raises(UserError, match=r"no entry 'net'.*ema, model"):
        read_state(path, entry="net")


def test_score_sdes_average_is_a_list_in_the_models_order(tmp_path):
    model = {
        "module.sigmas": tensor("0", B.astype(np.float32)),
        "module.all_modules.0.W": tensor("1", B.astype(np.float32)),
        "module.all_modules.1.weight": tensor("2", A),
    }
    save_zip(tmp_path / "checkpoint.pth", {"model": model, "ema": {"shadow_params": [tensor("3", -A)], "decay": 0.999}})
    state = read_state(tmp_path / "checkpoint.pth")
    np.testing.assert_array_equal(state["all_modules.1.weight"], -A)
    np.testing.assert_array_equal(state["all_modules.0.W"], B)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
)
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, save, module, name):
    witness = tmp_path / "witness"
    command = Call(Global(module, name), (f"touch {witness}",))
    save(tmp_path / "evil.pt", {"a": tensor("0", A), "b": command})
    with pytest.raises(UserError, match=rf"{module}.{name}.*nothing was read"):
        read_state(tmp_path / "evil.pt")
    assert not witness.exists()


@pytest.mark.parametrize("name", ["persistent.pkl", "script.pt"])
def test_modules_are_read_as_their_state_dict(name):
    """A pickle of NVIDIA's torch_utils.persistence and a TorchScript file are read (tests/golden/weights/README.md)."""
    state = read_state(GOLDEN / name)
    shapes = {"layers.conv.weight": (4, 3), "layers.conv.mean": (4,), "output.weight": (2, 4), "output.bias": (2,)}
    if name == "script.pt":
        shapes["layers.conv.scratch"] = (4,)  # TorchScript also stores buffers that Python's state_dict omits
    assert {name: value.shape for name, value in state.items()} == shapes
    for tensor_name in set(shapes) - {"layers.conv.scratch"}:
        np.testing.assert_array_equal(state[tensor_name], random_tensor(tensor_name, shapes[tensor_name]))


def test_the_source_in_a_persistent_pickle_is_not_run(tmp_path):
    witness = tmp_path / "witness"
    state = {"_parameters": {"a": tensor("0", A)}, "_buffers": {}, "_modules": {}}
    meta = {"type": "class", "module_src": f"open({str(witness)!r}, 'w')", "class_name": "Network", "state": state}
    network = Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))
    save_zip(tmp_path / "edm.pt", {"ema": network})
    np.testing.assert_array_equal(read_state(tmp_path / "edm.pt")["a"], A)
    assert not witness.exists()


def test_truncated_and_damaged_persistent_pickles(tmp_path):
    whole, path = (GOLDEN / "persistent.pkl").read_bytes(), tmp_path / "network.pkl"
    storage = whole.index(b"FloatStorage")  # the storage of the first tensor
    damaged = whole[:storage] + b"FloatStorXge" + whole[storage + 12 :]
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-7], damaged):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"network\.pkl"):
            read_state(path)


def test_other_plain_pickles_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"ema": os.system}))
    with pytest.raises(UserError, match=r"Python objects.*nothing was read.*safetensors\.torch\.save_file"):
        read_state(tmp_path / "network.pkl")
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_state(tmp_path / "numbers.pkl")


def test_views_outside_their_storage_are_refused(tmp_path):
    save_zip(tmp_path / "a.pt", {"a": tensor("0", A, shape=(4, 3))})
    with pytest.raises(UserError, match="element 11 of a storage of 6"):
        read_state(tmp_path / "a.pt")
    save_zip(tmp_path / "b.pt", {"a": tensor("0", A, offset=-1)})
    with pytest.raises(UserError, match="negative"):
        read_state(tmp_path / "b.pt")


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_truncated_torch_files(tmp_path, save):
    path = tmp_path / "weights.pt"
    save(path, {"a": tensor("0", np.arange(5000, dtype=np.float32))})
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"weights\.pt"):
            read_state(path)


def lying_header(**changes):
    header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + A.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors",
        struct.pack("<Q", 2**60) + b"{}",
        lying_header(shape=[2, 300]),
        lying_header(data_offsets=[0, 4096]),
        lying_header(data_offsets=[24, 0]),
        lying_header(dtype="F99"),
        lying_header()[:-5],
    ],
)
def test_damaged_safetensors(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors is damaged"):
        read_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("name", "kind"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_floats_of_eight_bits(tmp_path, name, kind):
    header = {"a": {"dtype": name, "shape": [2, 3], "data_offsets": [0, 6]}}
    header["b"] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [6, 30]}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + A.astype(kind).tobytes() + A.tobytes()
    )
    found = read_state(tmp_path / "a.safetensors")
    assert found["a"].dtype == kind
    np.testing.assert_array_equal(found["a"].astype(np.float32), A.astype(kind).astype(np.float32))
    np.testing.assert_array_equal(found["b"], A)


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=A)
    np.testing.assert_array_equal(read_state(tmp_path / "a.npz")["a"], A)
    np.savez(tmp_path / "b.npz", a=np.array([os.getcwd], dtype=object))
    with pytest.raises(UserError, match="more than arrays"):
        read_state(tmp_path / "b.npz")


def test_shards_of_a_folder(tmp_path):
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"b": B}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_state(tmp_path)) == {"a", "b"}
    index["weight_map"]["b"] = "../two.safetensors"
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        read_state(tmp_path)


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        read_state(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="no weights in"):
        read_state(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"come as \.safetensors"):
        read_state(tmp_path / "a.txt")


@pytest.fixture(scope="module")
def own():
    network = MODELS.example("dit")
    params = init_params(network, jax.random.key(0))
    return network, params, weight_map("dit", network).state(params)


def test_out_to_a_file_and_back(own, tmp_path):
    network, params, state = own
    write_state(tmp_path / "dit.safetensors", state, {"format": "dit"})
    form, tensors = fitted(network, read_state(tmp_path / "dit.safetensors"))
    back = weight_map(form, network).params(tensors, parameter_shapes(network))
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(params))
    assert [path.name for path in tmp_path.iterdir()] == ["dit.safetensors"]


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "blocks.1.attn.qkv.bias"), r"1 missing: blocks\.1\.attn\.qkv\.bias"),
        (lambda s: {**s, "blocks.9.attn.qkv.bias": B}, r"1 unexpected: blocks\.9\.attn\.qkv\.bias"),
        (lambda s: {**s, "blocks.0.mlp.fc1.weight": A}, r"blocks\.0\.mlp\.fc1\.weight \(2, 3\)"),
        (lambda s: {**s, "t_embedder.mlp.0.bias": s["t_embedder.mlp.0.bias"] * np.nan}, "is not finite"),
        (lambda s: {**s, "pos_embed": s["pos_embed"] + 1}, "pos_embed is a constant"),
    ],
)
def test_tensors_that_do_not_fit_are_named(own, change, message):
    network, _, state = own
    with pytest.raises(UserError, match=message):
        weight_map("dit", network).params(change(state), parameter_shapes(network))


def test_half_precision_comes_back_as_it_was(own):
    network, _, state = own
    half = {name: value.astype(np.float16) for name, value in state.items()}
    maps = weight_map("dit", network)
    back = maps.state(maps.params(half, parameter_shapes(network)))
    assert all(np.array_equal(back[name].astype(np.float16), half[name]) for name in maps.names())


def test_other_networks_weights_are_recognised_as_such(own):
    _, _, state = own
    with pytest.raises(UserError, match="names of no format of a UViT"):
        fitted(MODELS.example("uvit"), state)
    with pytest.raises(UserError, match="unknown format of weights 'dti'"):
        weight_map("dti", MODELS.example("dit"))
    with pytest.raises(UserError, match="format edm2 is for EDM2UNet"):
        weight_map("edm2", MODELS.example("dit"))


def test_the_text_of_uvit_is_read_and_written():
    """`context_embed` of the authors' libs/uvit_t2i.py is a dense layer and is converted exactly in both directions."""
    fields = {"hidden_size": 16, "depth": 2, "num_heads": 2, "context_channels": 5, "context_tokens": 3}
    network = MODELS.build({"name": "uvit", "image_size": 4, "image_channels": 2, **fields})
    maps, shapes = weight_map("uvit", network), parameter_shapes(network)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(draw.standard_normal(leaf.shape)), shapes)
    state = maps.state(params)
    assert state["context_embed.weight"].shape == (16, 5)
    assert state["pos_embed"].shape == (1, 1 + 3 + 4, 16)
    jax.tree.map(np.testing.assert_array_equal, maps.params(state, shapes), params)
