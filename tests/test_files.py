"""Files of the wrong type, hostile files, and directories that two processes write at once."""

import contextlib
import gzip
import io
import json
import os
import threading
import warnings
import zipfile

import numpy as np
import pytest

from diffusion_jax import files
from diffusion_jax.errors import RunError, UserError

READERS = {
    "text": files.read_text,
    "json": files.read_json,
    "rows": lambda path: list(files.read_json_rows(path)),
    "npz": files.read_npz,
    "npy": files.read_npy,
}


def _npz(path):
    np.savez(path, a=np.arange(6.0).reshape(2, 3))


def _promising(shape):
    """The header of an .npy file that announces more data than the file holds."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return out.getvalue()


def _zipped(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "lfs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    for name in ("pipe", "folder", "a", "missing", "lfs", "nul\0name", "x" * 5000):
        with pytest.raises(UserError) as error:
            READERS[reader](tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
        assert name[:20].split("\0")[0] in str(error.value)


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        *[("text", c) for c in (b"\xff\xfe\x00", b"caf\xe9")],
        *[("json", c) for c in (b"", b"{", b"[1]", b'"x"', b"\xff", b"[" * 100_000, b"9" * 10_000, b"\x00")],
        *[("rows", c) for c in (b'{"a": 1, "b": 2, "a": 1}', b'{"a": {"b": 1, "b": 2}}')],
        *[("rows", c) for c in (b"{}\n{", b"[1]\n", b"\xff\n", b"3\n", b"{}\n" + b"[" * 100_000)],
        *[("npz", c) for c in (b"", b"PK\x03\x04", b"no zip at all", b"\x93NUMPY\x01\x00")],
        *[("npy", c) for c in (b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", _promising((10**12,)))],
        ("npy", _promising((-1,))),
    ],
)
def test_what_is_damaged(tmp_path, reader, content):
    path = tmp_path / "found"
    path.write_bytes(content)
    with pytest.raises(UserError, match="found"):
        READERS[reader](path)


def test_every_cut_and_flip_of_an_npz(tmp_path):
    _npz(tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    path = tmp_path / "found.npz"
    for at in range(len(good)):
        for content in (good[:at], good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]):
            path.write_bytes(content)
            with contextlib.suppress(UserError):  # a flipped bit may lie in bytes that nobody reads
                files.read_npz(path)


def test_no_allocation_follows_a_number_in_a_file(tmp_path):
    _zipped(tmp_path / "bomb.npz", _promising((2**40,)))
    with pytest.raises(UserError, match="announces"):
        files.read_npz(tmp_path / "bomb.npz")
    (tmp_path / "long.json").write_text("[" + "1," * 1000 + "1]")
    with pytest.raises(UserError, match="more than 100 bytes"):
        files.read_json(tmp_path / "long.json", list, limit=100)


def test_an_npz_that_is_encrypted_and_one_with_an_array_twice(tmp_path):
    _npz(tmp_path / "found.npz")
    content = bytearray((tmp_path / "found.npz").read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + flags] |= 1
    (tmp_path / "found.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"found\.npz .*encrypted"):
        files.read_npz(tmp_path / "found.npz")
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in (1.0, 2.0):
            out = io.BytesIO()
            np.save(out, value)
            archive.writestr("a.npy", out.getvalue())
    with pytest.raises(UserError, match=r"twice\.npz .*an array twice"):
        files.read_npz(tmp_path / "twice.npz")


def test_what_is_right_is_read(tmp_path):
    _npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(files.read_npz(tmp_path / "a.npz")["a"], np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "a.npy", np.ones((2, 0)))
    assert files.read_npy(tmp_path / "a.npy", mmap=False).shape == (2, 0)
    (tmp_path / "mark.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "mark.json") == {"a": 1}
    rows = json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False) + "\n\n" + json.dumps({"text": "four"})
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(rows)
    assert [(n, row["text"]) for n, row in files.read_json_rows(tmp_path / "rows.jsonl.gz")] == [
        (1, "one\u2028two\x85three"),
        (3, "four"),
    ]


def test_a_gzip_is_damaged_anywhere(tmp_path):
    packed = bytearray(gzip.compress(os.urandom(500)))
    for at in range(0, len(packed), 7):
        damaged = packed.copy()
        damaged[at] ^= 0xFF
        (tmp_path / "found.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"found\.gz"), files.open_text(tmp_path / "found.gz") as file:
            file.read()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "~", ".hidden", "a\0b", "a" * 200, "-x", "a ", "a."])
def test_names_that_are_paths(name):
    with pytest.raises(UserError, match="plain name"):
        files.plain_name("corpus", name)


def test_only_what_is_ours_is_removed(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for name in ("theirs", "link"):
        with pytest.raises(UserError, match="not made by this program"):
            files.remove_ours(tmp_path / name)
        with pytest.raises(UserError, match="exists already"), files.whole_directory(tmp_path / name):
            pass
    with files.whole_directory(tmp_path / "ours") as partial:
        (partial / "x").touch()
    files.remove_ours(tmp_path / "ours")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "theirs"]
    assert (tmp_path / "theirs" / "thesis.tex").exists()


def test_three_make_one_directory_at_once(tmp_path):
    start = threading.Barrier(3)

    def make(number):
        start.wait()
        with files.whole_directory(tmp_path / "data") as partial:
            for part in range(20):
                (partial / f"{part}").write_text(str(number))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert len({(tmp_path / "data" / f"{part}").read_text() for part in range(20)}) == 1


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_makes_is_not(tmp_path):
    with files.whole_directory(tmp_path / "data") as living:
        left = tmp_path / ".data.dead.incomplete"
        left.mkdir()
        (left / files.MARKER).touch()
        foreign = tmp_path / ".data.foreign.incomplete"
        foreign.mkdir()
        with files.whole_directory(tmp_path / "data"):
            pass
        assert living.is_dir()
        assert not left.exists()
        assert foreign.is_dir()


def test_a_lock_is_held_by_one(tmp_path):
    with (
        files.locked(tmp_path / "lock", "process {holder} is here"),
        pytest.raises(UserError, match=str(os.getpid())),
        files.locked(tmp_path / "lock", "process {holder} is here"),
    ):
        pass
    with files.locked(tmp_path / "lock", "busy"):
        pass


def test_replacing_a_file_fails_without_a_trace(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match="unchanged"):
        files.replace_file(tmp_path / "report.html", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_sampled_digest_is_of_size_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 16)
    monkeypatch.setattr(files, "_PIECES", 4)
    path, found = tmp_path / "a", []
    contents = [bytes(60), bytes(59) + b"x", bytes(61), bytes(1000), b"x" + bytes(999), bytes(999) + b"x", bytes(1001)]
    for content in contents:
        path.write_bytes(content)
        found.append(files.sampled_digest(path))
    assert len(set(found)) == len(contents)
    path.write_bytes(bytes(500) + b"x" + bytes(499))  # between two chunks of a large file
    assert files.sampled_digest(path) == found[3]


def test_a_line_without_end(tmp_path):
    (tmp_path / "a.jsonl").write_text('{}\n{"a": "' + "x" * 100)
    with pytest.raises(UserError, match=r"line 2 of .*a\.jsonl has more than 50 characters"):
        list(files.read_json_rows(tmp_path / "a.jsonl", limit=50))


def test_a_home_that_nobody_has(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    assert files.read_text("~/a.txt") == "x"
    with pytest.raises(UserError, match="there is no file ~nobody-of-this-name/a"):
        files.read_text("~nobody-of-this-name/a")
