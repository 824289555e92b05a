"""Packages come from a folder or from npm; they are complete, or refused with one line."""

import dataclasses
import hashlib
import io
import os
import stat
import tarfile

import pytest

from diffusion_jax.data.packages import Package, archives, contents
from diffusion_jax.errors import UserError


def archive_of(files):
    """The bytes of an archive in npm's format, with all files in one folder."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def package_in(folder, name, files):
    """Write a package's archive into a folder; returns the package."""
    content = archive_of(files)
    package = Package(name=name, version="1.0.0", sha256=hashlib.sha256(content).hexdigest(), licence="MIT")
    folder.mkdir(exist_ok=True, parents=True)
    (folder / package.archive).write_bytes(content)
    return package


@pytest.fixture
def package(tmp_path):
    return package_in(tmp_path / "given", "@some/letters", {"a.json": b"{}", "LICENSE": b"free", "../out": b"no"})


def npm(tmp_path, monkeypatch, script):
    """Put a script called npm first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_an_archive_has_the_name_that_npm_gives_it(package):
    assert package.archive == "some-letters-1.0.0.tgz"
    assert str(package) == "@some/letters@1.0.0"


def test_files_come_from_a_folder(package, tmp_path):
    found = contents([package], str(tmp_path / "data"), lambda name: name != "LICENSE", str(tmp_path / "given"))
    assert found[package]["a.json"] == b"{}"
    assert "LICENSE" not in found[package]
    assert [path.name for path in (tmp_path / "data").iterdir()] == []  # nothing is written or left over


def test_files_are_fetched_by_name_and_version(package, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, f'test "$3" = @some/letters@1.0.0 && cp {tmp_path}/given/*.tgz .')
    found = contents([package], str(tmp_path / "data"), lambda name: name == "a.json")
    assert found == {package: {"a.json": b"{}"}}


def test_what_cannot_be_fetched_says_the_command_and_the_path_option(package, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(UserError, match=r"ENOTFOUND.*`npm pack @some/letters@1\.0\.0`.*--package_dir") as caught:
        contents([package], str(tmp_path / "data"), bool)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed here.*`npm pack @some/letters@1\.0\.0`.*--package_dir"):
        contents([package], str(tmp_path / "data"), bool)


def test_another_archive_is_refused(package, tmp_path):
    other = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(UserError, match=f"SHA-256 is {package.sha256}, it should be 0000"):
        archives([other], tmp_path, str(tmp_path / "given"))
    missing = dataclasses.replace(package, version="2.0.0")
    with pytest.raises(UserError, match=r"has no some-letters-2\.0\.0\.tgz: `npm pack @some/letters@2\.0\.0`"):
        archives([missing], tmp_path, str(tmp_path / "given"))


def test_a_damaged_archive_is_named(tmp_path):
    content = archive_of({"a.json": bytes(range(256)) * 100})[:150]
    package = Package(name="cut", version="1.0.0", sha256=hashlib.sha256(content).hexdigest(), licence="MIT")
    (tmp_path / package.archive).write_bytes(content)
    with pytest.raises(UserError, match=r"cut-1\.0\.0\.tgz is damaged"):
        contents([package], str(tmp_path / "data"), bool, str(tmp_path))
