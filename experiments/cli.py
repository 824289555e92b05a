"""The command line's contract: flags checked before anything runs, one clear line for every expected failure.

Exit codes: 0 done, 2 bad configuration or input (one line, no traceback), 1 anything else (one line when the cause is
known, a traceback when it is not).
"""

import difflib
import errno
import importlib.util
import inspect
import logging
import os
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from diffusion_jax.errors import RunError, UserError

_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_CONVOLUTION_FLAG_KNOWN = ("0.10.2",)  # jaxlib


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The --config flag: a file with `get_config()`; any field is overridden by --config.a.b=value."""
    return config_flags.DEFINE_config_file("config", default, "config file, for example configs/digits_unet.py")


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parse the flags, run `main(argv)`, and exit by the contract above."""

    def guarded(argv: Sequence[str]) -> int | None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; options begin with --, see --help")
            code = main(argv)
            sys.stdout.flush()
            return code
        except UserError as error:
            return _fail(error, 2)
        except RunError as error:
            return _fail(error, 1)
        except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return _fail(f"no space left on the device of {error.filename or 'the workdir'}", 1)
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return _fail(f"no permission: {error.strerror}: {error.filename}", 2)
            raise

    _quiet()
    _quicken_cpu()
    app.run(guarded, flags_parser=_parse)


def _fail(error: Exception | str, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def _quicken_cpu() -> None:
    """Let XLA run convolutions on all cores, where it is known how: on CPU, before JAX starts.

    Measured with `benchmarks.models`: the train step of DDPM's U-Net is 1.5 times as fast. An XLA flag that a version
    does not know ends the process, so it is given only to those that were tried; XLA_FLAGS that name it win.
    """
    accelerated = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin"))
    flags_there = os.environ.get("XLA_FLAGS", "")
    only_cpu = os.environ.get("JAX_PLATFORMS", "") in ("cpu", "") and not accelerated
    if only_cpu and metadata.version("jaxlib") in _CONVOLUTION_FLAG_KNOWN and _CONVOLUTION_FLAG not in flags_there:
        os.environ["XLA_FLAGS"] = (
            f"{flags_there} {_CONVOLUTION_FLAG}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION".strip()
        )


def _quiet() -> None:
    """Leave the terminal to the progress bar: libraries report only what a user should act on."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("orbax", "tensorflow_datasets", "grain", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # each array of a failed write; the first error is raised
    # Orbax reports through absl's logger what options mean for it.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    warnings.filterwarnings("ignore", module=r"(orbax|tensorflow_datasets|google)\..*")
    sys.unraisablehook = _without_abandoned_arrays(sys.unraisablehook)


def _without_abandoned_arrays(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """An `unraisablehook` that passes over what is printed for every further array when a checkpoint fails.

    The first error reaches the caller. After it each array that is being written, as to a full disk, finds the event
    loop closed, and each that is being read from a damaged checkpoint is a coroutine that nobody waits for.
    """

    def filtered(unraisable: Any) -> None:
        error, source = unraisable.exc_value, unraisable.object
        late_write = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        late_read = inspect.iscoroutine(source) and "orbax" in source.cr_code.co_filename
        if not late_write and not late_read:
            hook(unraisable)

    return filtered


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        known = _config_fields(argv)
        return flags.FLAGS(argv)
    except UserError as error:
        sys.exit(_fail(error, 2))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        sys.exit(_fail(_explain(argv, known, error), 2))


def _config_fields(argv: Sequence[str]) -> list[str]:
    """The fields of the config file that the command line names; empty when it names none.

    Raises:
      UserError: there is no such file, or it is no config.
    """
    following = [*argv[1:], ""]
    named = [arg.partition("=")[2] if "=" in arg else after for arg, after in zip(argv, following, strict=True)
             if arg.partition("=")[0] in ("--config", "-config")]  # fmt: skip
    if not named:
        return []
    path = named[-1]
    file, _, argument = path.partition(":")
    if not Path(file).is_file():
        raise UserError(f"can not read --config={path}: no such file")
    try:
        get_config = runpy.run_path(file)["get_config"]
        return list(flatten(get_config(argument) if argument else get_config()))
    except Exception as error:  # whatever a config file may raise: it is the user's program
        raise UserError(f"can not read --config={path}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _explain(argv: Sequence[str], known: Sequence[str], error: Exception) -> str:
    """Name the flag that is wrong and the nearest valid one."""
    groups = {name.rpartition(".")[0] for name in known}
    for arg in argv if known else ():
        name = arg.removeprefix("--config.").partition("=")[0]
        if arg.startswith("--config.") and name not in known and name not in groups:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            return f"the config has no field {name!r}{hint}"
    text = _first_line(error)
    match = re.match(r"flag --(config\.\S+?)=(.*?): (.*)", text)
    if match:
        return f"wrong type for --{match[1]}: {match[3]}"
    return text.removesuffix(".") + "; see --help"


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """All fields of a config by dotted name, in order."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def assign_flags(group: ConfigDict, *holders: flags.FlagHolder) -> None:
    """Flags that were given become the fields of that name, also in a run begun before there was such a field."""
    with group.unlocked():
        for holder in holders:
            if holder.value is not None:
                group[holder.name] = holder.value


def writable_directory(path: str | Path) -> Path:
    """Create a directory, or say why it can not be written.

    Raises:
      UserError: not a directory, no permission, or not on this machine.
    """
    if "://" in str(path):
        raise UserError(f"{path}: logs and pictures need a local directory; only checkpoint.directory may be remote")
    directory = Path(path).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{directory} is not a directory") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"can not create {directory}: {error.strerror}") from error
    probe = directory / f".writable.{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"can not write to {directory}: {error.strerror}") from error
    return directory
