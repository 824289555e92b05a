"""The hub, on a local server: models fetched by name or pushed with a card, and weights fetched by their hash."""

import hashlib
import re
import sys
from pathlib import Path

import pytest

from diffusion_jax import weights
from diffusion_jax.errors import UserError
from experiments.ground.fields import runner
from experiments.services import downloads, hub
from tests.hub import serving

ROOT = Path(__file__).parent.parent.parent
DIT = ROOT / "tests" / "golden" / "dit"


@pytest.fixture
def there(tmp_path):
    """A hub with a tiny published folder, and the environment of a process that uses it."""
    with serving() as served:
        files = {path.relative_to(DIT).as_posix(): path.read_bytes() for path in DIT.rglob("*") if path.is_file()}
        served.repositories["someone/dit"] = {**files, "README.md": b"# a card", "picture.png": b"none"}
        environment = {"HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_right"}
        yield served, {**environment, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_a_name_is_fetched_and_found_again_without_a_network(command, there, tmp_path):
    served, environment = there
    out, _ = command.run("convert", "--source=hf://someone/dit", f"--target={tmp_path / 'run'}", **environment)
    assert "parameters:" in out
    assert (tmp_path / "run" / "config.json").is_file()
    assert not any(path.endswith(("README.md", "picture.png")) for path in served.asked)
    asked = len(served.asked)
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    command.run("convert", "--source=hf://someone/dit", f"--target={tmp_path / 'again'}", **offline)
    assert len(served.asked) == asked


@pytest.mark.slow
def test_what_cannot_be_fetched_is_one_line(command, there, tmp_path):
    _, environment = there
    line = command.fails("convert", "--source=hf://someone/other", f"--target={tmp_path / 'run'}", **environment)
    assert "there is no such model or file, or you have no access to it (`hf auth login` logs in)" in line
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    line = command.fails("convert", "--source=hf://someone/dit", f"--target={tmp_path / 'run'}", **environment)
    assert "the hub cannot be reached" in line
    assert "`hf download someone/dit --local-dir=FOLDER` fetches it" in line
    assert line.endswith("give --source=FOLDER")
    assert not (tmp_path / "run").exists()


def test_a_run_is_pushed_with_a_card(command, there, finished, tmp_path):
    served, environment = there
    arguments = (f"--source={finished[0]}", f"--target={tmp_path / 'digits.safetensors'}", "--push_to_hub=me/digits")
    out, _ = command.run("convert", *arguments, **environment)
    assert "pushed: " in out
    assert served.private == {"me/digits"}
    files = served.repositories["me/digits"]
    assert set(files) == {"digits.safetensors", "run_config.json", "samples.png", "README.md"}
    assert files["digits.safetensors"] == (tmp_path / "digits.safetensors").read_bytes()
    assert files["samples.png"] == (finished[0] / "samples" / "final.png").read_bytes()
    card = files["README.md"].decode()
    said = ("# digits", "60 steps of 32 examples of `digits`", "| Training loss |", "![samples", "convert --source=")
    assert not [words for words in said if words not in card]
    (tmp_path / "digits").mkdir()
    for name, content in files.items():
        (tmp_path / "digits" / name).write_bytes(content)
    line = next(line for line in card.splitlines() if line.startswith("diffusion-jax convert"))
    here = re.sub(r"([=:])(digits|runs)/", rf"\1{tmp_path}/\2/", line)
    command.run("convert", *here.split()[2:])
    assert (tmp_path / "runs" / "digits" / "config.json").is_file()


def test_a_push_without_access_or_of_no_run_is_one_line(command, there, finished, tmp_path):
    _, environment = there
    environment["HF_TOKEN"] = "hf_wrong"
    target = tmp_path / "digits.safetensors"
    arguments = (f"--source={finished[0]}", f"--target={target}", "--push_to_hub=me/digits")
    line = command.fails("convert", *arguments, **environment)
    assert "--push_to_hub=me/digits: there is no such model or file, or you have no access to it" in line
    assert "`hf upload me/digits FOLDER` pushes it later" in line
    assert target.is_file()
    line = command.fails("convert", f"--source={DIT}", f"--target={tmp_path / 'x'}", "--push_to_hub=me/dit")
    assert "--push_to_hub needs a run" in line


@pytest.mark.parametrize("name", ["hf://", "hf://one", "hf://../x", "hf://a/b/", "hf://a b/c"])
def test_names_that_are_none(name):
    with pytest.raises(UserError, match=r"a model on the hub is hf://OWNER/NAME"):
        hub.fetched(name)


def test_the_client_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"not installed: `pip install '\.\[hub\]'`$"):
        hub.fetched("hf://a/b")


def test_of_weights_that_are_there_several_times_one_is_fetched():
    pipeline = {
        "unet": ("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
        "vae": ("config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        "text_encoder": ("config.json", "model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.safetensors"),
        "safety": ("model.fp16.safetensors",),
        "tokenizer": ("vocab.json", "merges.txt"),
    }
    files = [f"{folder}/{name}" for folder, names in pipeline.items() for name in names]
    files += ["model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", ".gitattributes", "README.md", "a.png"]
    assert set(files) - set(hub.wanted(files)) == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        *("v1-5-pruned.ckpt", "v1-5-pruned.safetensors", ".gitattributes", "README.md", "a.png"),
    }
    assert hub.wanted(["weights.pt", "config.json"]) == ["config.json", "weights.pt"]


def test_addresses_and_hashes_are_those_that_errors_name():
    said = {"inception": weights.INCEPTION_SOURCE, "dinov2": weights.DINOV2_SOURCE, "clip": weights.CLIP_SOURCE}
    assert set(said) == set(downloads.FILES)
    for kind, files in downloads.FILES.items():
        assert any(one.sha256 for one in files)
        for one in files:
            assert one.sha256 in said[kind]
            assert one.url.partition("/resolve/")[0] in said[kind]


@pytest.fixture
def mirror(there, tmp_path, monkeypatch):
    """A hub that holds weights of a known hash, with a cache folder in the test's directory."""
    served, _ = there
    monkeypatch.setenv("HF_ENDPOINT", served.address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served.repositories["someone/weights"] = {"inception.pth": b"weights", "config.json": b"{}"}
    url = "https://huggingface.co/someone/weights/resolve/main"
    one = downloads.Published(f"{url}/inception.pth", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(downloads.FILES, "inception", (one,))
    monkeypatch.setitem(downloads.FILES, "clip", (downloads.Published(f"{url}/config.json", ""), one))
    return served


def test_weights_are_fetched_once_by_their_hash(mirror, tmp_path):
    evaluation = runner().evaluation
    downloads.fetch_needed(evaluation, ("fid", "kid", "nearest_neighbours"))
    assert Path(evaluation.inception).read_bytes() == b"weights"
    assert evaluation.clip == evaluation.dinov2 == ""
    asked = len(mirror.asked)
    downloads.fetch_needed(runner().evaluation, ("fid",))
    assert len(mirror.asked) == asked
    assert sorted(path.name for path in downloads.fetched("clip").iterdir()) == ["config.json", "inception.pth"]
    named = runner().evaluation
    named.inception = "mine.pth"
    downloads.fetch_needed(named, ("fid",))
    assert named.inception == "mine.pth"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("content", r"is not the weights of Inception-v3 .* its SHA-256 is [0-9a-f]{64}, it should be"),
        ("missing", r"cannot be fetched \(Not Found\): on a machine with a network get https://.*--inception$"),
        ("network", r"cannot be fetched \(.*refused\): on a machine with a network get https://.*--inception$"),
    ],
)
def test_weights_that_are_not_those_or_not_there(mirror, wrong, words, tmp_path, monkeypatch):
    if wrong == "content":
        mirror.repositories["someone/weights"]["inception.pth"] = b"others"
    if wrong == "missing":
        del mirror.repositories["someone/weights"]
    if wrong == "network":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=words):
        downloads.fetch_needed(runner().evaluation, ("fid",))
    assert not list((tmp_path / "cache").rglob("*inception*.p*"))
