"""Truncated, empty, foreign or malicious files give one line with the file's name; nothing is executed, and no number
in a file causes a large allocation."""

import io
import json
import os
import pathlib
import pickle
import resource
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.weights import read_state
from tests.torch_writer import Call, Global, save_legacy, save_zip, tensor, tensors

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "weights"
A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def little_memory():
    """Limit the address space to 2 GB more than now, so that an allocation by a number in a file fails."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", ["settings.pt", "settings_legacy.pt"])
def test_settings_beside_the_tensors_are_read_over(name):
    """Settings next to the tensors are ignored in real PyTorch files (tests/golden/weights/README.md)."""
    state = read_state(GOLDEN / name)
    assert {key: value.shape for key, value in state.items()} == {
        "0.weight": (2, 3), "0.bias": (2,), "1.weight": (1, 2), "1.bias": (1,),
    }  # fmt: skip
    np.testing.assert_array_equal(state["0.weight"], (np.arange(6).reshape(2, 3) + 1) / 2)
    np.testing.assert_array_equal(read_state(GOLDEN / name, entry="model")["1.bias"], [4])


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", ("touch x",)),
        ("subprocess", "Popen", (("touch", "x"),)),
        ("builtins", "exec", ("1",)),
        ("builtins", "getattr", (Global("os", "path"), "join")),
        ("numpy", "load", ("x",)),
        ("torch._utils", "_rebuild_anything", ()),
        ("authors.tools", "make", ()),
        ("functools", "reduce", ()),
        ("_io", "FileIO", ("x", "w")),
    ],
)
def test_calls_are_refused(tmp_path, module, name, arguments):
    evil = {"a": tensor("0", A), "b": Call(Global(module, name), arguments)}
    save_zip(tmp_path / "evil.pt", evil)
    save_legacy(tmp_path / "evil.ckpt", evil)
    for file in ("evil.pt", "evil.ckpt"):
        with pytest.raises(UserError, match=rf"{file}"):
            read_state(tmp_path / file)


def test_what_belongs_to_this_process_is_not_changed(tmp_path):
    """A pickle cannot set the state of a NumPy type in this process."""
    state = b"(K\x03X\x01\x00\x00\x00>NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00t"  # the opposite byte order
    program = b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatStorage\n" + state + b"bs."
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(UserError, match=r"a\.pkl"):
        read_state(tmp_path / "a.pkl")
    assert np.dtype(np.float32).isnative


def huge_memo():
    return b"\x80\x02]r\xff\xff\xff\x7f."  # LONG_BINPUT


PICKLES = {
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**45) + b"abc.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b"abc.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**45) + b"N.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**45) + b"abc.",
    "memo": huge_memo(),
    "number": b"I" + b"9" * 10_000 + b"\n.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "empty": b"\x80\x02.",
    "cut": b"\x80",
    "bytearray_call": b"\x80\x02cbuiltins\nbytearray\n(L1000000000000L\ntR.",
    "range_list": b"\x80\x02cbuiltins\nlist\n(cbuiltins\nrange\n(L1000000000000L\ntRtR.",
    "storage_count": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuL1000000000000L\ntQ.",
}


@pytest.mark.parametrize("name", sorted(PICKLES))
@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_numbers_in_pickles(tmp_path, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PICKLES[name])
    with pytest.raises(UserError, match=rf"a\{suffix}"):
        read_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", PICKLES[name])
    with pytest.raises(UserError, match=rf"a\{suffix}"):
        read_state(path)


def test_many_paths_to_one_container_are_one_walk(tmp_path):
    found = [1.0]
    for _ in range(60):
        found = [found, found]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(found))
    with pytest.raises(UserError, match="no tensors by name"):
        read_state(tmp_path / "a.pkl")
    found = []
    found.append(found)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": found}))
    with pytest.raises(UserError, match="no tensors by name"):
        read_state(tmp_path / "b.pkl")


def test_shapes_larger_than_the_storage(tmp_path):
    for shape, strides in (((10**6, 10**6), (0, 0)), ((10**12,), (1,)), ((2**40, 2**40), (0, 0)), ((3,), (0, 0))):
        save_zip(tmp_path / "a.pt", {"w": tensor("0", A, shape=shape, strides=strides)})
        with pytest.raises(UserError, match=r"a\.pt"):
            read_state(tmp_path / "a.pt")
    save_zip(tmp_path / "b.pt", {"w": tensor("0", A, shape=(4, 5), strides=(0, 1))})
    assert read_state(tmp_path / "b.pt")["w"].shape == (4, 5)  # the result of `expand`


def test_bombs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(2**27))
    with pytest.raises(UserError, match=r"a\.pt is damaged.*promise"):
        read_state(tmp_path / "a.pt")
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    for start in (struct.pack("<Q", 2**63), struct.pack("<Q", 2**40), struct.pack("<Q", len(header))):
        (tmp_path / "a.safetensors").write_bytes(start + header)
        with pytest.raises(UserError, match=r"a\.safetensors"):
            read_state(tmp_path / "a.safetensors")


KINDS = {
    "html.pt": (b"\n<!DOCTYPE html><html>", "web page"),
    "html.safetensors": (b"<html><head>", "web page"),
    "error.bin": (b"<?xml version='1.0'?><Error>AccessDenied", "XML"),
    "text.ckpt": (b"Entry not found", "'Entry not found'"),
    "json.pt": (b'{"error": "gated"}', "JSON"),
    "model.gguf": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "gguf.bin": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a", "ONNX"),
    "flax.msgpack": (b"\x81\xa6params\x80", "msgpack"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "model.ckpt-1.data-00000-of-00001": (b"\0" * 64, "TensorFlow"),
    "model.ckpt-1.index": (b"\0" * 64 + struct.pack("<Q", 0xDB4775248B80FB57), "TensorFlow"),
    "a.pt.gz": (b"\x1f\x8b\x08", "gzip"),
    "empty.pt": (b"", "empty"),
    "picture.pth": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "array.npz": (b"\x93NUMPY", "npy"),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_cannot_be_read_says_what_it_is(tmp_path, name):
    content, what = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        read_state(tmp_path / name)
    assert name in str(caught.value)


def test_other_archives_say_what_they_hold(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("unet/weights.safetensors", b"")
    with pytest.raises(UserError, match=r"a\.zip is a zip archive.*unet/weights\.safetensors: unpack it"):
        read_state(tmp_path / "a.zip")


def test_the_content_says_what_a_file_is(tmp_path):
    """The content decides, not the name: a torch file called .safetensors, weights without an ending, `.pth.tar`."""
    save_zip(tmp_path / "a.safetensors", tensors({"a.w": A}))
    save_legacy(tmp_path / "model_best.pth.tar", tensors({"a.w": A}))
    save_file({"a.w": A}, tmp_path / "weights")
    for name in ("a.safetensors", "model_best.pth.tar", "weights"):
        np.testing.assert_array_equal(read_state(tmp_path / name)["a.w"], A)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "circle.pt").symlink_to(tmp_path / "circle.pt")
    (tmp_path / "nowhere.pt").symlink_to(tmp_path / "absent")
    for name in ("pipe", "circle", "nowhere"):
        with pytest.raises(UserError, match=rf"{name}\.pt"):
            read_state(tmp_path / f"{name}.pt")
    for path in ("x" * 300, "a\0b"):
        with pytest.raises(UserError, match="no file or folder"):
            read_state(path)


@pytest.mark.parametrize("name", ["settings.pt", "settings_legacy.pt", "persistent.pkl", "script.pt"])
def test_damage_anywhere_is_one_line_or_nothing(tmp_path, name):
    """A file with changed or missing bytes is read if nothing needs them, or is named in a `UserError`."""
    whole, draw = (GOLDEN / name).read_bytes(), np.random.default_rng(0)
    path = tmp_path / name
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.integers(1, 4)):
            content[draw.integers(len(whole))] = draw.integers(256)
        path.write_bytes(content[: draw.integers(len(whole))] if draw.random() < 0.3 else content)
        assert str(path) in error_of(path)


def error_of(path):
    """The error message of reading a file, or its path if there is no error."""
    try:
        read_state(path)
    except UserError as error:
        return str(error)
    return str(path)


def write_tar(path, *, count=1, numel=6, sparse=False):
    """Write a file in the format of PyTorch before 0.1.10: storages, tensors, and a pickle that refers to them."""

    def dump(value):
        return pickle.dumps(value, 2)

    program = b"\x80\x02}X\x03\x00\x00\x00a.wK\x07Qs."  # {"a.w": tensor 7}
    kind = b"\x80\x02K\x05X\x03\x00\x00\x00cpuctorch\nFloatStorage\n\x87."
    parts = {
        "storages": dump(count) + kind + struct.pack("<q", numel) + A.tobytes() + dump([]),
        "tensors": dump(1)
        + b"\x80\x02K\x07K\x05ctorch\nFloatTensor\n\x87."
        + struct.pack("<ii2q2qq", 2, 0, 2, 3, 3, 1, 0),
        "pickle": program,
    }
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in {"sys_info": dump({}), **parts}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_archives_of_the_oldest_form(tmp_path):
    write_tar(tmp_path / "a.pt")
    np.testing.assert_array_equal(read_state(tmp_path / "a.pt")["a.w"], A)
    for changes in ({"count": 10**12}, {"numel": 10**12}, {"numel": -1}):
        write_tar(tmp_path / "b.pt", **changes)
        with pytest.raises(UserError, match=r"b\.pt"):
            read_state(tmp_path / "b.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for size in (300, 700, 1500, 2600):
        (tmp_path / "c.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"c\.pt"):
            read_state(tmp_path / "c.pt")


def test_strings_and_objects_among_arrays_are_settings(tmp_path):
    np.savez(tmp_path / "a.npz", **{"a.w": A, "config": np.array("{}")})
    assert set(read_state(tmp_path / "a.npz")) == {"a.w"}


def test_bfloat16_as_numpy_writes_it(tmp_path):
    import ml_dtypes

    np.savez(tmp_path / "a.npz", **{"a.w": A.astype(ml_dtypes.bfloat16)})
    np.testing.assert_array_equal(read_state(tmp_path / "a.npz")["a.w"].astype(np.float32), A)
