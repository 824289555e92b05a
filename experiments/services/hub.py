"""Models on the Hugging Face hub: fetched by `hf://OWNER/NAME`, and pushed with a card.

    hf://OWNER/NAME                   the files of a model, without those that hold the same weights once more
    hf://OWNER/NAME@REVISION          the same as of a branch, a tag or a commit
    hf://OWNER/NAME/FILE              one file

The client is an extra, `pip install '.[hub]'`. It keeps what it fetched, so that the same name needs no network later,
and obeys its own variables: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError

PREFIX = "hf://"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_SOURCE = re.compile(rf"hf://({_NAME}/{_NAME})(?:@([\w./-]+?))?(?:/(.+))?")
_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".ot", ".tflite", ".gguf")
_OTHERS = (".md", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".pdf")  # of no use for a model


def is_remote(source: str) -> bool:
    """Whether a source is on the hub and not a path."""
    return source.startswith(PREFIX)


def fetched(source: str, flag: str = "--source") -> Path:
    """The folder, or the file, of what a name `hf://...` is of.

    Args:
      source: the name.
      flag: by which the user gave it, for the error.

    Raises:
      UserError: no such name, no client, no access, or no network; the line says what to put where.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UserError(f"{flag}={source}: a model on the hub is hf://OWNER/NAME, with @REVISION or /FILE after it")
    repository, revision, file = match.groups()
    hub = require(flag)
    try:
        if file:
            return Path(hub.hf_hub_download(repository, file, revision=revision))
        try:
            names = hub.HfApi().list_repo_files(repository, revision=revision)
        except Exception as error:
            if (_status(error) or 500) < 500:  # the hub has answered
                raise
            kept = dict(allow_patterns=["*.json"], ignore_patterns=[".*"])  # fetched last time with what it describes
            return Path(hub.snapshot_download(repository, revision=revision, local_files_only=True, **kept))
        chosen = [re.sub(r"([*?\[])", r"[\1]", name) for name in wanted(names)]
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=chosen))
    except Exception as error:  # whatever the client and the network may raise
        of = f" --revision={revision}" if revision else ""
        one = f" {file}" if file else ""
        place = f"FOLDER/{file}" if file else "FOLDER"
        raise UserError(
            f"{source} cannot be fetched: {_reason(error)}; where there is a network, `hf download "
            f"{repository}{one}{of} --local-dir=FOLDER` fetches it: bring the folder here and give {flag}={place}"
        ) from error


def wanted(files: Sequence[str]) -> list[str]:
    """The files of a repository that make its model: of weights that are there in several forms, one.

    In a folder with safetensors other files of weights are left out, and variants such as fp16 where there are files
    without a variant. Beside a pipeline's model_index.json whole models in one file are left out.
    """
    names = sorted(files)
    chosen = []
    for name in names:
        folder, own = posixpath.split(name)
        beside = [posixpath.basename(other) for other in names if posixpath.dirname(other) == folder]
        tensors = own.endswith(".safetensors")
        whole = not folder and "model_index.json" in beside
        if own.startswith(".") or own.lower().endswith(_OTHERS):
            continue
        if (tensors or own.lower().endswith(_WEIGHTS)) and whole:
            continue
        if own.lower().endswith(_WEIGHTS) and any(other.endswith(".safetensors") for other in beside):
            continue
        plain = _plain(own)
        if plain != _numberless(own) and plain in map(_numberless, beside):
            continue
        chosen.append(name)
    return chosen


def _plain(name: str) -> str:
    """The name of a file of weights without a variant and without the number of a shard."""
    return re.sub(r"\.(fp16|bf16|non_ema|fp32)(?=\.)", "", _numberless(name))


def _numberless(name: str) -> str:
    return re.sub(r"-\d{5}-of-\d{5}", "", name)


def push(repository: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Put files into a repository in one commit; a new repository is private. Returns its address.

    Raises:
      UserError: no client, no access, or no network; what was to be pushed stays where it is.
    """
    hub = require("--push_to_hub")
    api = hub.HfApi()
    operations = [
        hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        address = str(api.create_repo(repository, private=True, exist_ok=True))
        api.create_commit(repository, operations, commit_message=message)
    except Exception as error:  # whatever the client and the network may raise
        raise UserError(
            f"--push_to_hub={repository}: {_reason(error)}; the files written here are complete: `hf upload "
            f"{repository} FOLDER` pushes it later"
        ) from error
    return address


def require(flag: str) -> Any:
    """The client of the hub.

    Raises:
      UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        mend = "`pip install '.[hub]'`"
        raise UserError(f"{flag}: the hub needs huggingface_hub, which is not installed: {mend}") from error
    return huggingface_hub


def _status(error: BaseException) -> int | None:
    """The code that the hub has answered with; None where it has not answered."""
    response = vars(error).get("response")
    return None if response is None else response.status_code


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status in (401, 403, 404):
        return "there is no such model or file, or you have no access to it (`hf auth login` logs in)"
    if status is not None:
        return f"the hub answers with {status}"
    return f"the hub cannot be reached ({type(error).__name__})"
