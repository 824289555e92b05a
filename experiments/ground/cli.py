"""The command line's contract: flags checked before anything runs, one clear line for every expected failure.

Exit codes: 0 done, 2 bad configuration or input (one line, no traceback), 1 anything else (one line if the cause is
known, a traceback if not; no line if nobody reads the output any more), 130 stopped by Ctrl-C, 143 stopped by SIGTERM;
a training that has saved first exits 0. `--help` exits 0.

A command states its flags before it imports anything heavy, so that `--help` and wrong flags take no time:

    from experiments.ground import cli

    FLAGS = cli.Flags(__name__, __doc__)
    STEPS = FLAGS.integer("steps", 10, "how many", lower=1)
    cli.begin(FLAGS)

    import jax
    ...
    if __name__ == "__main__":
        cli.run(main)
"""

import contextlib
import errno
import inspect
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from diffusion_jax.errors import RunError, UserError
from experiments.ground import compilation
from experiments.ground.config_files import (
    call_get_config,
    complete_config,
    expanded,
    flatten,
    guarded,
    import_parts,
    load_config,
    load_config_module,
    one_line,
)
from experiments.ground.options import HELP, MOST_COUNT, MOST_SAMPLES, MOST_SEED, MOST_STEPS, Flags, spoken
from experiments.ground.readers import (
    assignment,
    folder_and_picture,
    host_and_port,
    number_text,
    path_and_scale,
    path_and_word,
    path_of,
    repository,
    template,
    weight,
    whole_number,
)

__all__ = [
    "CACHE_MEANING",
    "MOST_COUNT",
    "MOST_SAMPLES",
    "MOST_SEED",
    "MOST_STEPS",
    "Flags",
    "assign_flags",
    "assignment",
    "begin",
    "call_get_config",
    "complete_config",
    "flatten",
    "folder_and_picture",
    "guarded",
    "host_and_port",
    "import_parts",
    "load_config",
    "load_config_module",
    "number_text",
    "path_and_scale",
    "path_and_word",
    "path_of",
    "repository",
    "run",
    "spoken",
    "template",
    "weight",
    "whole_number",
    "writable_directory",
    "writable_file",
]


CACHE = "compilation_cache"
CACHE_MEANING = compilation.MEANING
"""Name and meaning of a flag of all commands that compile, a boolean that is true by default."""


class Stopped(KeyboardInterrupt):
    """A signal that asks this process to end; open files are closed on the way."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def begin(options: Flags) -> None:
    """If the command is the main program, read its flags or show its help, and exit here unless it can run."""
    if not options.is_program:
        return options.assume_defaults()
    _open_streams()
    _on_signals(_end_at_once)
    before_rest = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    if HELP & set(before_rest):
        with contextlib.suppress(OSError):  # the reader has seen enough
            print(options.help(sys.argv), flush=True)
        _leave_stdout()
        sys.exit(0)
    try:
        options.read(sys.argv)
    except UserError as error:
        sys.exit(_fail(error, 2))
    if CACHE in options:
        compilation.keep_programs(options[CACHE])


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run `main(argv)` after `begin`, and exit by the contract above."""
    _quiet()
    compilation.quicken_cpu()
    _on_signals(_stop)
    code = _guarded(main)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the interpreter ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(code)


def _guarded(main: Callable[[Sequence[str]], int | None]) -> int | None:
    try:
        code = main(sys.argv[:1])
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        _leave_stdout()
        return 1
    except OSError as error:
        return _fail(*_of_system(error))
    except KeyboardInterrupt as error:
        number = signal.Signals(error.number if isinstance(error, Stopped) else signal.SIGINT)
        return _fail(f"stopped by {number.name}", 128 + number)
    except EOFError as error:
        return _fail(f"the input ended early: {one_line(error)}", 1)
    except MemoryError as error:
        return _fail(f"not enough memory: {one_line(error)}; ask for less at once", 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(f"the device has not enough memory: {one_line(error)[:200]}; lower the batch size", 1)


def _of_system(error: OSError) -> tuple[str, int]:
    """The line and the exit code for an error that the system reports; other errors are raised again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device of {error.filename or 'the workdir, or of the output'}", 1
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission: {error.strerror}: {error.filename}", 2
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{error.filename}: {error.strerror}", 2
    raise error


def _fail(error: Exception | str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be closed too
        print(f"error: {spoken(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    _leave_stdout()
    return code


def _open_streams() -> None:
    """Replace output streams that were closed before the start, so that printing to them has no effect."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _leave_stdout() -> None:
    """Flush stdout; if that fails, drop it, so that the interpreter does not try again when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _on_signals(handler: Callable[[int, Any], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, handler)


def _end_at_once(number: int, frame: Any) -> None:
    """End the process at once: before the command has started there is nothing to close."""
    _fail(f"stopped by {signal.Signals(number).name} before anything was started", 0)
    os._exit(128 + number)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


def _quiet() -> None:
    """Silence libraries on the terminal, except for reports on which a user should act."""
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("orbax", "tensorflow_datasets", "grain", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # each array of a failed write; the first error is raised
    # Orbax reports its interpretation of options through absl's logger.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    warnings.filterwarnings("ignore", module=r"(orbax|tensorflow_datasets|google)\..*")
    sys.unraisablehook = _without_abandoned_arrays(sys.unraisablehook)


def _without_abandoned_arrays(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """An `unraisablehook` that ignores the messages about all further arrays when a checkpoint fails.

    The first error reaches the caller. After it, each array that is being written, for example to a full disk, finds
    the event loop closed, and each that is being read from a damaged checkpoint is a coroutine that nobody awaits.
    """

    def filtered(unraisable: Any) -> None:
        error, source = unraisable.exc_value, unraisable.object
        late_write = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        late_read = inspect.iscoroutine(source) and "orbax" in source.cr_code.co_filename
        if not late_write and not late_read:
            hook(unraisable)

    return filtered


def assign_flags(group: ConfigDict, *holders: flags.FlagHolder) -> None:
    """Set the fields of the same names to the flags that were given."""
    for holder in holders:
        if holder.value is not None:
            group[holder.name] = holder.value


def writable_directory(path: str | Path) -> Path:
    """Create a directory, or say why it cannot be written.

    Raises:
      UserError: it is not a directory, not permitted, or not on this machine.
    """
    if "://" in str(path):
        raise UserError(f"{path}: logs and pictures need a local directory; only checkpoint.directory may be remote")
    directory = Path(expanded(str(path))).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{directory} is not a directory") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot create {directory}: {error.strerror}") from error
    probe = directory / f".writable.{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error
    return directory


def writable_file(path: str | Path, *, read: Sequence[str | None] = ()) -> Path:
    """The path of a file that will be written, whose folder is created; `read` are files that the command reads.

    Raises:
      UserError: it is a folder, or one of the files that are read, or its folder cannot be written.
    """
    path = Path(expanded(str(path)))
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file to write: name a file in it")
    for other in filter(None, read):
        if path.is_file() and Path(other).is_file() and path.samefile(other):
            raise UserError(f"{path} would be written over, and it is read ({other}): give another --out")
    writable_directory(path.parent)
    return path
