"""Folders of weights: diffusers' models and pipelines, `transformers`' models, and the output of training programs.

A model of diffusers is `config.json` beside `diffusion_pytorch_model.safetensors` or `.bin`, either whole or in shards
listed in an index, in full precision or as a variant ("fp16", "non_ema"). A pipeline is `model_index.json` above
folders of models and of a scheduler.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json
from diffusion_jax.weights.entries import says_average
from diffusion_jax.weights.sniffing import recognise

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".ckpt", ".bin", ".pkl")
NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")
_PARTS = ("transformer", "unet", "denoiser", "model")  # parts of a pipeline
_NO_WEIGHTS = re.compile(r"(^|[^a-z])(opt|optim\w*|\w*sched\w*|scaler|random|rng|training_args|step)([^a-z]|$)")
_STEM = f"(?P<stem>{'|'.join(STEMS)})" + r"(?:\.(?P<a>[\w-]+?))?"
_SUFFIX = r"(?P<suffix>\.safetensors|\.bin)"
_FILE = re.compile(_STEM + r"(?P<shard>-\d+-of-\d+)?(?:\.(?P<b>\w+))?" + _SUFFIX)
_INDEX = re.compile(_STEM + _SUFFIX + r"\.index(?:\.(?P<b>\w+))?\.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
    """The files of a network.

    Attributes:
      folder: folder with the network's files.
      config: its config.json; None if there is none.
      scheduler: its scheduler_config.json; None if there is none.
      notes: what was chosen, one line each.
    """

    folder: Path
    config: Path | None
    scheduler: Path | None
    notes: tuple[str, ...] = ()


def locate(path: Path) -> Located:
    """The network in a folder: its own, or a pipeline's.

    Raises:
      UserError: a pipeline has no network that is known here.
    """
    folder, notes = path, []
    if (path / "model_index.json").is_file():
        folder = _of_pipeline(path)
        notes.append(f"{path} is a pipeline: its {folder.name} is read, and no other part but the scheduler")
    elif not (path / "config.json").is_file() and not _published(path):
        inner = [child for child in _folders(path) if (child / "config.json").is_file() and _published(child)]
        averages = [child for child in inner if says_average([child.name])]
        if len(averages or inner) > 1:
            names = ", ".join(child.name for child in averages or inner)
            raise UserError(f"{path} has several networks, {names}: give the folder of one")
        if inner:
            folder = (averages or inner)[0]
            notes.append(f"{path} has no network of its own: its {folder.name} is read")
    average = folder.absolute().parent / f"{folder.absolute().name}_ema"
    if _published(average):
        if folder != path and not says_average([folder.name]):
            folder = average
            notes.append(f"its average is taken, {average.name}")
        else:
            notes.append(f"taking raw weights: an average of them lies in {average}")
    config = folder / "config.json"
    beside = (folder, path, path / "scheduler", folder / "scheduler", folder.parent / "scheduler")
    schedulers = [place / "scheduler_config.json" for place in beside]
    return Located(
        folder=folder,
        config=config if config.is_file() else None,
        scheduler=next((file for file in schedulers if file.is_file()), None),
        notes=tuple(notes),
    )


def _of_pipeline(path: Path) -> Path:
    index = read_json(path / "model_index.json")
    parts = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str) and (path / name).is_dir()
    }
    known = [name for name, kind in parts.items() if kind in NETWORKS] or [name for name in _PARTS if name in parts]
    if not known:
        there = ", ".join(f"{name} ({kind})" for name, kind in parts.items()) or "nothing that is here"
        raise UserError(f"{path / 'model_index.json'} names no network that is known here; it names {there}")
    return path / known[0]


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir())


def _published(folder: Path) -> bool:
    """Whether a folder has weights under the libraries' file names."""
    return folder.is_dir() and any(
        _FILE.fullmatch(file.name) or _INDEX.fullmatch(file.name) for file in folder.iterdir()
    )


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of one set of weights, with all shards, and lines about the choice.

    Raises:
      UserError: there is none, there are several candidates, or shards are missing.
    """
    variants: dict[tuple[str, str, str], list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _INDEX.fullmatch(file.name) or _FILE.fullmatch(file.name)
        if match and file.is_file():
            key = (match["stem"], match["a"] or match["b"] or "", match["suffix"])
            variants.setdefault(key, []).append(file)
    if not variants:
        return _other_files(folder)
    stem, variant, suffix = min(variants, key=_preference)
    notes = []
    if variant and ("", stem) not in {(other, s) for s, other, _ in variants}:
        notes.append(f"{folder} has no weights but its variant {variant!r}, which is read")
    elif variant:
        notes.append(f"taking the variant {variant!r} of {folder}")
    if any(other == "non_ema" for _, other, _ in variants) and variant != "non_ema":
        notes.append(f"taking the average of the parameters in {folder}; raw weights there: the variant 'non_ema'")
    if variant == "non_ema":
        notes.append("these are raw weights, not their average")
    return _whole(variants[stem, variant, suffix], folder), notes


def _preference(key: tuple[str, str, str]) -> tuple:
    stem, variant, suffix = key
    order = 0 if says_average([variant]) else 1 if not variant else 3 if variant == "non_ema" else 2
    return order, STEMS.index(stem), SUFFIXES.index(suffix), variant != "fp16", variant


def _whole(files: list[Path], folder: Path) -> list[Path]:
    """A file, or all shards."""
    single = [file for file in files if file.suffix != ".json" and not re.search(r"-\d+-of-\d+", file.name)]
    if single:
        return single[:1]
    index = next((file for file in files if file.suffix == ".json"), None)
    if index is not None:
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
            raise UserError(f"{index} is damaged: it has no table of weights")
        names = sorted(set(table.values()))
        if any(Path(name).name != name or "\0" in name for name in names):
            raise UserError(f"{index} names files outside its folder")
    else:
        counts = {re.search(r"-of-(\d+)", file.name)[1] for file in files}
        if len(counts) > 1:
            raise UserError(
                f"{folder} has shards of several sets, of {' and of '.join(sorted(counts))}, and no index says which "
                "is meant: move one away"
            )
        count = re.search(r"-(\d+)-of-(\d+)", files[0].name)
        numbers = range(1, min(int(count[2]), 10_000) + 1)
        names = [re.sub(r"-\d+-of-", f"-{n:0{len(count[1])}d}-of-", files[0].name) for n in numbers]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        listed = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise UserError(f"{folder} lacks {len(missing)} of the {len(names)} shards of its weights: {listed}")
    return [folder / name for name in names]


def _other_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The only file of weights in a folder; the average, if raw weights are beside it."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    files = [file for file in files if not _NO_WEIGHTS.search(file.stem.lower())]
    averages = [file for file in files if says_average([file.stem])]
    if len(files) == 1:
        return files, []
    if len(averages) == 1:
        others = ", ".join(file.name for file in files if file not in averages)
        return averages, [f"taking the average {averages[0].name}; other files: {others}"]
    if files:
        names = ", ".join(file.name for file in (averages or files)[:8])
        raise UserError(f"{folder} has several files of weights: {names}; give the one that is meant")
    raise UserError(f"no weights in {folder}: looked for {', '.join(STEMS)} as .safetensors or .bin{_instead(folder)}")


def _instead(folder: Path) -> str:
    """A hint at files that cannot be read."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix not in (".json", ".txt", ".md"):
            reader, what = recognise(file)
            if reader or what:
                return f"; {file.name} is {what or 'of another name: give the file itself'}"
    if (folder / "manifest.ocdbt").exists() or (folder / "_CHECKPOINT_METADATA").exists():
        return "; it is a checkpoint of Orbax: give the workdir of a run"
    return ""


def averages_beside(file: Path) -> Sequence[Path]:
    """Files of averages beside a file of raw weights, for the same step if the names contain steps."""
    steps = re.findall(r"\d+", file.stem)
    return [
        other
        for other in sorted(file.parent.iterdir())
        if other.suffix == file.suffix
        and says_average([other.stem])
        and (not steps or steps[-1] in re.findall(r"\d+", other.stem))
    ]


def read_config(path: Path | str) -> dict | None:
    """config.json of a folder's network; None if there is none.

    Raises:
      UserError: it is damaged, or no JSON object.
    """
    config = locate(Path(path)).config
    return None if config is None else read_json(config)
