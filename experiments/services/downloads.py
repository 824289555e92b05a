"""Weights that metrics need, fetched from where they are published and held against the hash that is known.

They are kept in the user's cache folder, `diffusion_jax/weights`, and found there the next time without a network.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError
from experiments.evaluating.judging import WEIGHTS, space_kind
from experiments.ground.compilation import cache_folder

_PATIENCE = 60  # seconds without a byte
_BLOCK = 2**20
_HUB = "https://huggingface.co"


class Published(NamedTuple):
    """A file of weights.

    Attributes:
      url: where it is.
      sha256: of its bytes, in hexadecimal digits; "" where nothing is known, as of small files beside weights.
    """

    url: str
    sha256: str


_CLIP = f"{_HUB}/openai/clip-vit-large-patch14-336/resolve/main"
FILES: dict[str, tuple[Published, ...]] = {
    "inception": (
        Published(
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        ),
    ),
    "dinov2": (
        Published(
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
            "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        ),
    ),
    "clip": (
        Published(f"{_CLIP}/config.json", ""),
        Published(f"{_CLIP}/tokenizer.json", ""),
        Published(f"{_CLIP}/pytorch_model.bin", "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801"),
    ),
}
"""By the field of config.evaluation that names them. Those of one file are a file, those of several a folder."""


def fetch_needed(evaluation: Any, metrics: Sequence[str]) -> None:
    """Fetch the weights that metrics need and that a config's group `evaluation` names none for, and name them there.

    Raises:
      UserError: they cannot be fetched, or are other ones.
    """
    for kind in sorted({space_kind(name) for name in metrics} & set(FILES)):
        if not evaluation[kind]:
            evaluation[kind] = str(fetched(kind))


def fetched(kind: str) -> Path:
    """The file, or the folder, of the weights of a kind; fetched unless it is there."""
    folder = cache_folder() / "weights" / kind
    paths = [_fetched(kind, one, folder) for one in FILES[kind]]
    return paths[0] if len(paths) == 1 else folder


def _fetched(kind: str, published: Published, folder: Path) -> Path:
    path = folder / published.url.rpartition("/")[2]
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    url = published.url
    if url.startswith(f"{_HUB}/"):
        url = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/") + url.removeprefix(_HUB)
    what, source = WEIGHTS[kind]
    print(f"fetching {url}", file=sys.stderr, flush=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=folder)
    try:
        with open(handle, "wb") as file:
            digest = _copy(url, file)
        if published.sha256 not in ("", digest):
            raise UserError(
                f"{url} is not {what} that {kind} is defined by: its SHA-256 is {digest}, it should be "
                f"{published.sha256}; get {source} and give its path with --{kind}"
            )
        os.replace(partial, path)
    except UserError:
        raise
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        said = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"--download: {what} cannot be fetched ({' '.join(str(said).split())[:100]}): on a machine with a network "
            f"get {source}, bring it here, and give its path with --{kind}"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    return path


def _copy(url: str, file: Any) -> str:
    """Write what a URL holds to a file; returns its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
        while block := answer.read(_BLOCK):
            file.write(block)
            digest.update(block)
    return digest.hexdigest()
