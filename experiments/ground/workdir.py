"""A run's directory: the config that it belongs to, and the place of every file."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from diffusion_jax import __version__
from diffusion_jax.data import AT_A_PATH, DatasetInfo
from diffusion_jax.errors import RunError, UserError
from diffusion_jax.files import content_hash, locked, parse_json, read_json, replace_file
from experiments.ground.config_files import flatten, import_parts
from experiments.ground.fields import complete, runner
from experiments.ground.options import spoken
from experiments.ground.renamed import names_in_hashes, with_new_names

SAVED = "saved.json"  # in the workdir, once there is a checkpoint: its step and directory
_REMOVAL_SECONDS = 0.5
OWNER = "owner.json"  # beside the checkpoints: the run that they belong to
_OWNER_FORMAT = 3  # an earlier hash was different; the records of such checkpoints say whose they are
FINISHED = "finished.json"  # in the workdir, once training, evaluation and report are done
AFTER_TRAINING = ("sampling.", "evaluation.")  # fields that training does not read, except for its pictures
BESIDE_TRAINING = (  # those of them that validation, whose numbers are logged, does not read either
    "evaluation.",
    *(
        f"sampling.{name}"
        for name in ("sampler", "grid", "steps", "guid", "projection", "inversion", "clip_x0", "batch_size")
    ),
)
STEPS = "train.steps"  # may grow once all steps are done, see experiments/running/extension.py
FILES = "files.json"  # in the workdir: the hashes of the files that training reads
# Where and how the work is done does not change the result, so a run may resume with other values of these.
PLACE_FIELDS = (
    *("parallel.", "imports", "data.num_workers", "data.data_dir", "data.options.path", "checkpoint.directory"),
)
# Whether there is such a file or run belongs to the run; its place does not.
READ_FIELDS = (  # training reads these, and their content is hashed
    *("data.features", "objective.vgg", "objective.lpips"),
    "conditioning.text.tokenizer.path",
)
PATH_FIELDS = (
    *READ_FIELDS,
    *(f"evaluation.{name}" for name in ("inception", "reference", "dinov2", "dinov2_reference", "clip")),
    "teacher.workdir",
    "first_stage.path",
    "init.folder",
    "data.instance",
    "data.class_pictures",
    "sampling.guidance.guide",
    "conditioning.text.encoder.folder",
)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """A config as plain JSON types."""
    return json.loads(config.to_json_best_effort())


@functools.cache
def defaults() -> Mapping[str, Any]:
    """The defaults of the runner's fields by dotted name, in the form in which JSON returns them."""
    return flatten(ConfigDict(to_json(runner())))


def digest(config: ConfigDict, *, without: Sequence[str] = ()) -> str:
    """A hash of a config without where the work is done, and without fields whose names begin with one of `without`.

    Fields with their default value are left out, so that a config keeps its hash when the runner gets a new field.
    """
    return _hash(identity(to_json(config)), (*PLACE_FIELDS, *without))


def hash_without(config: ConfigDict, names: Sequence[str]) -> str:
    """A hash of a config without the fields whose names begin with one of `names`."""
    return _hash(flatten(ConfigDict(to_json(config))), names)


def _hash(fields: Mapping[str, Any], without: Sequence[str]) -> str:
    by_default = defaults()
    kept = {
        name: value
        for name, value in fields.items()
        if not name.startswith(tuple(without)) and (name not in by_default or by_default[name] != value)
    }
    return hashlib.sha256(json.dumps(names_in_hashes(kept), sort_keys=True, default=str).encode()).hexdigest()


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config by dotted name, without the places of files and folders.

    A field that an earlier version's config lacks has its default, and a renamed field has its present name.
    """
    fields = {**defaults(), **flatten(with_new_names(ConfigDict(config)))}
    named = {name: "named" for name in PATH_FIELDS if fields.get(name)}
    kind, colon, _ = str(fields["data.dataset"]).partition(":")
    if colon and kind in AT_A_PATH:
        named["data.dataset"] = kind
    return fields | named


def lock(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the workdir for this process; raises UserError if another process is training there."""
    return locked(workdir / ".lock", f"process {{holder}} is training in {workdir}: wait for it, or stop it")


@contextlib.contextmanager
def lock_checkpoints(config: ConfigDict) -> Iterator[None]:
    """Hold the checkpoint directory, if it is on this machine and not in the workdir, which has its own lock.

    Raises:
      UserError: another process is writing there.
    """
    named = config.checkpoint.directory
    if not named or "://" in named:
        yield
        return
    directory = Path(named).expanduser().absolute()
    if directory.exists() and not directory.is_dir():
        raise UserError(f"checkpoint.directory={named} is not a directory")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"checkpoint.directory={named}: {directory.parent} is not a directory") from error
    busy = f"process {{holder}} is writing checkpoints into {directory}: give another checkpoint.directory"
    with locked(directory.with_name(f".{directory.name}.lock"), busy):
        yield


def claim(
    workdir: Path,
    config: ConfigDict,
    info: DatasetInfo,
    *,
    kept: Mapping[str, bytes] | None = None,
    primary: bool = True,
    write: bool = True,
    other_steps: bool = False,
) -> None:
    """Write config.json, data.json and files.json, or check that they are the same; with `write` false only check.

    `kept` are files made from the data that stay in the workdir, such as a word list: name and content.

    The places of data and files may change, their content may not. Fields only for sampling and evaluation may change
    too, except the average that validation uses; that may change once the run is finished, which is then evaluated
    again. With `other_steps` the number of steps may differ: the caller has checked the checkpoints, or will do so.

    Raises:
      UserError: the workdir belongs to another config, or data or files have changed; the message lists what differs.
    """
    writes, kept = primary and write, dict(kept or {})
    hashes = _hashes(config) | {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
    if (workdir / "config.json").exists():
        there, finished = to_json(read_config(workdir, whole=False)), (workdir / FINISHED).is_file()
        free = (*(AFTER_TRAINING if finished else BESIDE_TRAINING), *([STEPS] if other_steps else []))
        require_same_config(there, config, workdir, but=free)
        known = read_info(workdir)
        both = known.fingerprint and info.fingerprint  # runs of earlier versions have none
        told = info if both else dataclasses.replace(info, fingerprint=known.fingerprint)
        uncounted = known.num_examples == 0 and dataclasses.replace(told, num_examples=0) == known  # not prepared then
        if known != told and not uncounted:
            raise UserError(f"the data is not that of the run in {workdir}: {known} there, {info} here")
        recorded = read_json(workdir / FILES) if (workdir / FILES).is_file() else {}
        for name, found in hashes.items():
            if recorded.get(name, found) != found:
                raise UserError(f"{name} is not the file of the run in {workdir}: its content differs")
        if writes:
            changed = _differences(there, config, but=(STEPS,))
            if changed:
                print(
                    f"changed in {workdir}, which only sampling and evaluation read: {'; '.join(changed)}", flush=True
                )
            if _differences(there, config):  # the mark goes first: after a kill here the run is evaluated again
                (workdir / FINISHED).unlink(missing_ok=True)
    if writes:
        for name, content in kept.items():
            replace_file(workdir / name, content)
        _write(workdir / "data.json", dataclasses.asdict(info))
        _write(workdir / FILES, hashes)
        _write(workdir / "config.json", to_json(config))


def _hashes(config: ConfigDict) -> dict[str, str]:
    """The hashes of the files that training reads, by field; their readers report missing files."""
    fields = flatten(config)
    named = {name: Path(fields[name]).expanduser() for name in READ_FIELDS if fields.get(name)}
    return {
        name: content_hash(path) for name, path in named.items() if path.exists()
    }  # its reader reports that it is missing


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON file, unless it already has this content."""
    content = (json.dumps(fields, indent=2) + "\n").encode()
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def teacher_copy(workdir: Path | str) -> Path:
    """The folder in which a run keeps the description of its teacher's run: config and data, not weights."""
    return Path(workdir) / "teacher"


def own_checkpoints(workdir: Path, config: ConfigDict, directory: Any, *, other_steps: Sequence[int] = ()) -> None:
    """Record whose the checkpoints in `directory` are, on this machine or in a bucket, or check that they are ours.

    `other_steps` are the numbers of steps that the same run had before it was trained longer.

    Raises:
      UserError: they belong to a run with another config.
    """
    file = epath.Path(directory) / OWNER
    theirs = parse_json(file.read_bytes().decode("utf-8-sig", "replace"), file) if file.exists() else {}
    ours = {"run": digest(config, without=(*AFTER_TRAINING, STEPS)), "workdir": str(workdir), "format": _OWNER_FORMAT}
    known = theirs.get("format") == _OWNER_FORMAT
    steps = theirs.get("steps") if known else None
    there = {number for number in steps if isinstance(number, int)} if isinstance(steps, list) else set()
    if known and (theirs.get("run") != ours["run"] or not there & {config.train.steps, *other_steps}):
        raise UserError(
            f"the checkpoints in {directory} are those of the run in {theirs.get('workdir')}, which has another "
            "config: give another checkpoint.directory"
        )
    if config.train.steps not in there:
        content = json.dumps({**ours, "steps": sorted({*there, config.train.steps})})
        if "://" in str(directory):
            file.write_text(content)
        else:
            replace_file(file, content.encode())


def known_steps(workdir: Path) -> int | None:
    """The number of steps of the run in `workdir`; None if there is no run yet."""
    return read_config(workdir).train.steps if (workdir / "config.json").exists() else None


def remember_saved(workdir: Path, step: int, directory: Any, extended: Sequence[int] = ()) -> None:
    """Record that there is a complete checkpoint, so that its loss is noticed, and former numbers of steps."""
    saved = {"step": step, "directory": str(directory), **({"extended": list(extended)} if extended else {})}
    replace_file(workdir / SAVED, json.dumps(saved).encode(), make_folder=False)


def require_nothing_lost(workdir: Path, directory: Any, *, mend: str = ", or begin again with --restart") -> None:
    """Raise UserError if no checkpoint was found in `directory` although this run had one; `mend` ends the message."""
    saved = read_json(workdir / SAVED) if (workdir / SAVED).is_file() else {}
    if not saved and not (workdir / FINISHED).is_file():
        return
    had = f"had checkpoint {saved.get('step')} in {saved.get('directory')}" if saved else "is finished"
    raise UserError(
        f"the run in {workdir} {had}, and there is no checkpoint in {directory}: restore it, give its "
        f"checkpoint.directory{mend}"
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """Directories of a run that is under way; they exist as long as certain files do, which every run has in them.

    Attributes:
      signs: those files.
      mends: for each, the remedy if it is missing.
    """

    signs: tuple[epath.Path, ...] = ()
    mends: tuple[str, ...] = ()

    @classmethod
    def of(cls, workdir: Path | str, checkpoints: Any = None) -> "Place":
        """The present workdir and directory of checkpoints."""
        signs = {epath.Path(workdir) / "config.json": "bring it back, or begin again"}
        if checkpoints is not None:
            signs[epath.Path(checkpoints) / OWNER] = (
                "bring it back and the same command goes on from the newest checkpoint in it, or begin again with "
                "--restart"
            )
        there = {sign: mend for sign, mend in signs.items() if sign.exists()}
        return cls(signs=tuple(there), mends=tuple(there.values()))

    def require(self, doing: str) -> None:
        """Raise RunError if a directory has been removed or replaced; `doing` says during what."""
        if all(sign.exists() for sign in self.signs):
            return
        time.sleep(_REMOVAL_SECONDS)  # removal starts with inner directories: wait, to name the outermost
        for sign, mend in zip(self.signs, self.mends, strict=True):
            if not sign.exists():
                raise RunError(
                    f"{sign.parent} was removed or replaced {doing} (its {sign.name} is gone), so nothing more is "
                    f"written there: {mend}"
                )


def keep_teacher(workdir: Path, teacher: Path | str) -> None:
    """Copy config.json and data.json of the teacher's run, so that this run can be read without it."""
    teacher_copy(workdir).mkdir(exist_ok=True)
    for name in ("data.json", "config.json"):
        replace_file(teacher_copy(workdir) / name, (Path(teacher) / name).read_bytes())


def _differences(there: Mapping[str, Any], config: ConfigDict, but: tuple[str, ...] = ()) -> list[str]:
    before, now = identity(there), identity(to_json(config))
    return [
        f"{name}: {before.get(name, 'absent')!r} -> {now.get(name, 'absent')!r}"
        for name in sorted(set(before) | set(now))
        if before.get(name, "absent") != now.get(name, "absent") and not name.startswith((*PLACE_FIELDS, *but))
    ]


def require_same_config(
    there: Mapping[str, Any], config: ConfigDict, owner: Any, *, but: tuple[str, ...] = AFTER_TRAINING
) -> None:
    """Raise UserError with the fields that differ, unless `there` is the config, apart from where the work is done.

    Fields whose names begin with one of `but` may differ, too.
    """
    differences = _differences(there, config, but)
    if differences:
        raise UserError(
            f"{owner} belongs to a run with another config; differing fields (there -> here): "
            f"{'; '.join(differences)}. Give another --workdir (and checkpoint.directory), or the config of that run"
        )


def read_info(workdir: Path | str) -> DatasetInfo:
    """The description of the data of the run in `workdir`; raises UserError if that file is missing or damaged."""
    path = Path(workdir) / "data.json"
    fields = read_json(path)
    try:
        known = DatasetInfo.from_json(fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    is_folder = str(known.name).startswith("folder:")  # in earlier versions the name contained the path
    return dataclasses.replace(known, name="folder") if is_folder else known


def read_config(workdir: Path | str, *, whole: bool = True) -> ConfigDict:
    """The config of the run in `workdir`; this also registers the parts that it imports.

    Fields that are newer than the run have their defaults. With `whole` false, a config that lacks a field without a
    default is read too, for comparison with another config.

    Raises:
      UserError: nothing was trained there, or the file is damaged or has a field that no longer exists.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {workdir}: train first, with --workdir={workdir}")
    config = with_new_names(ConfigDict(read_json(path)))
    try:
        complete(config, whole=whole)
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}{_of_version(path.parent)}") from error
    import_parts(config.imports, f"the field imports of {path}")
    return config


def _of_version(workdir: Path) -> str:
    """What to say of a run that another version of the package wrote; "" where this one did, or nobody knows."""
    path = workdir / "environment.json"
    wrote = read_json(path).get("diffusion_jax") if path.is_file() else None
    if wrote in (None, __version__):
        return ""
    return f"; version {wrote} wrote this run, and this is {__version__}: read it with that one, or train it again"


def write_environment(workdir: Path | str, *, num_parameters: int) -> None:
    """Write environment.json: versions, devices and the commit, for the report."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "diffusion_jax")
    versions = {name: metadata.version(name) for name in packages if _installed(name)}
    environment: Mapping[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        **versions,
        "commit": _commit(),
        "num_parameters": num_parameters,
        "command": spoken(shlex.join(["python", "-m", "experiments.train", *_lasting(sys.argv[1:])])),
    }
    replace_file(Path(workdir) / "environment.json", (json.dumps(environment, indent=2) + "\n").encode())


def _lasting(arguments: Sequence[str]) -> list[str]:
    """The arguments that belong to every start of the run, not only to this one."""
    return [arg for arg in arguments if not arg.startswith(("--resume_from", "--restart", "--profile_steps"))]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The commit of the code, with a mark if files differ from it; None outside a repository."""
    root = Path(__file__).parents[2]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
