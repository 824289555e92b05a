"""Config files, which are users' programs: whatever they do, an error is one line.

A file has `get_config()`, or `get_config(text)` for `FILE:text`, which returns a ConfigDict. Its output goes to stderr,
so that a command's own output is not mixed with it.
"""

import contextlib
import difflib
import hashlib
import importlib
import inspect
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.files import read_bytes
from experiments.ground import fields
from experiments.ground.renamed import with_new_names

HOME = Path(__file__).parents[2]
"""The folder that has `experiments` and `configs`: a clone, or a folder in the installed package."""
INSTALLED = "_runner"
CONFIGS = HOME / "configs"
_LARGEST = 2**22  # bytes of a config file


def expanded(path: str) -> str:
    """A path with ~ expanded.

    Raises:
      UserError: there is no such user.
    """
    result = os.path.expanduser(path)
    if result.startswith("~"):
        raise UserError(f"{path}: there is no user {path.partition('/')[0][1:]!r}; a folder of that name is ./{path}")
    return result


def load_config(name: str) -> ConfigDict:
    """The config of `--config=NAME`, which is FILE or FILE:TEXT.

    Raises:
      UserError: there is no such file, or it does not return a config; the message names it.
    """
    file, colon, text = name.partition(":")
    if not file.strip() or file.startswith("-"):
        raise UserError(f"--config needs the path of a file, got {name!r}")
    if file.endswith(".json"):
        raise UserError(f"cannot read --config={name}: a config is a .py file; --config=configs/from_json.py:{name}")
    arguments = (expanded(text),) if colon and text.startswith("~") else (text,) if colon else ()
    return call_get_config(load_config_module(file), file, *arguments)


def takes_resolution(name: str) -> bool:
    """Whether a config file's `get_config` has the text parameter `resolution`, and NAME, FILE or FILE:TEXT, sets none.

    Raises:
      UserError: there is no such file, or it fails.
    """
    file, colon, _ = name.partition(":")
    function = None if colon else load_config_module(file).get("get_config")
    return callable(function) and "resolution" in inspect.signature(function).parameters


def require_clone(what: str) -> None:
    """Raise UserError in an installation: `what` writes pages of the repository, which only a clone has."""
    if HOME.name == INSTALLED:
        raise UserError(f"{what} writes to docs/ of a clone, and this is an installation: run it in a clone")


def find_config(name: str | Path) -> Path:
    """The file of a config: the path of an existing file, else the config of that name in configs/.

    `digits_unet`, `digits_unet.py` and `configs/digits_unet.py` name the same one, from any directory.
    """
    path = Path(expanded(str(name)))
    if os.path.isfile(path) or path.is_absolute() or ".." in path.parts:
        return path
    shipped = CONFIGS / f"{str(path).removeprefix('configs/').removesuffix('.py')}.py"
    return shipped if os.path.isfile(shipped) else path


def _near(path: Path) -> str:
    """A hint for a missing config: the most similar name in configs/."""
    known = [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in sorted(CONFIGS.rglob("*.py"))]
    asked = path.as_posix().removeprefix("configs/").removesuffix(".py")
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.6)
    return f", and no config of that name; did you mean {near[0]}?" if near else ""


def load_config_module(path: str | Path) -> dict[str, Any]:
    """The names that a config file defines when it runs.

    Raises:
      UserError: there is no such file, it is not Python, or it fails or exits; the message names the file.
    """
    path = find_config(path)
    try:
        source = read_bytes(path, limit=_LARGEST)
    except UserError as error:
        missing = f"no such file{_near(path)}" if not os.path.lexists(path) else one_line(error)
        raise UserError(f"cannot read --config={path}: {missing}") from error
    name = f"config_{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses and pickle look up the module of a class
    with guarded(path):
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    return vars(module)


def call_get_config(module: Mapping[str, Any], path: str | Path, *arguments: str) -> ConfigDict:
    """Call `get_config` of a config file and check that the result is a config.

    Raises:
      UserError: there is no such function, it takes other arguments, fails or exits, or returns something else.
    """
    function = module.get("get_config")
    if not callable(function):
        raise UserError(f"cannot read --config={path}: it has no function get_config()")
    with guarded(path):
        signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        mend = "leave out what follows the colon" if arguments else f"it wants a text, as in --config={path}:TEXT"
        raise UserError(f"cannot read --config={path}: get_config{signature} does not fit; {mend}") from error
    with guarded(path):
        config = function(*arguments)
        complete_config(config, path)
    return config


def complete_config(config: Any, path: str | Path) -> None:
    """Fill in the defaults of the fields that a file's config leaves out.

    Raises:
      UserError: it is no ConfigDict, has an unknown field, or leaves out one that has no default; the message
        names the file and the field.
    """
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise UserError(
            f"cannot read --config={path}: get_config() returned {type(config).__name__}, "
            "not an ml_collections.ConfigDict"
        )
    flatten(config)  # fails for a config that contains itself
    fields.complete(with_new_names(config))


@contextlib.contextmanager
def guarded(path: str | Path, what: str = "it") -> Iterator[None]:
    """A block that runs code of the file, called `what`: errors and exits become one line, output goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr), _exits_as_errors():
            yield
    except UserError as error:
        named = str(path) in str(error)
        raise error if named else UserError(f"cannot read --config={path}: {one_line(error)}") from error
    except SyntaxError as error:
        raise UserError(
            f"cannot read --config={path}: line {error.lineno} is not Python: {error.msg or type(error).__name__}"
        ) from error
    except SystemExit as error:
        raise UserError(f"cannot read --config={path}: {what} exits (SystemExit: {error.code}) instead") from error
    except KeyboardInterrupt as error:
        raise UserError(f"cannot read --config={path}: {what} was interrupted (KeyboardInterrupt)") from error
    except BaseException as error:  # a user's program may raise anything
        if isinstance(error, GeneratorExit):
            raise
        raise UserError(
            f"cannot read --config={path}: {what} raised {type(error).__name__}: {one_line(error)}"
        ) from error


@contextlib.contextmanager
def _exits_as_errors() -> Iterator[None]:
    """A block in which `os._exit`, which would go unnoticed, raises SystemExit, and Ctrl-C raises KeyboardInterrupt."""
    kept, os._exit = os._exit, _exit
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler) if in_main else None
    try:
        yield
    finally:
        os._exit = kept
        if in_main:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)


def _exit(code: int) -> None:
    raise SystemExit(code)


def import_parts(names: Any, origin: object = "config.imports") -> None:
    """Import the modules that register a run's own parts, which are named in a config's field `imports`.

    A name with a slash, or one that ends in .py, is the path of a file. The current directory is on the path.

    Raises:
      UserError: there is no such module, or it fails; the message names it.
    """
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{origin} needs a tuple of names of modules, such as ('my_package.parts',), got {names!r}")
    if names and not {os.getcwd(), ""} & set(sys.path):
        sys.path.append(os.getcwd())
    for name in names:
        if name.endswith(".py") or "/" in name:
            _import_file(Path(expanded(name)), origin)
        else:
            _import(name, origin)


def _import_file(path: Path, origin: object) -> None:
    """Import a file under its own name, from its folder, so that worker processes find its classes too."""
    if not path.is_file():
        raise UserError(f"{origin} names {path}: there is no such file below {os.getcwd()}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    found = getattr(_import(path.stem, origin), "__file__", None)
    if found is None or not os.path.samefile(found, path):
        raise UserError(f"{origin} names {path}: another module is called {path.stem} ({found}); rename the file")


def _import(name: str, origin: object) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{origin} names {name}, which needs the module {error.name}: install it") from error
        raise UserError(
            f"{origin} names {name}: there is no such module; install it, or run from the directory where it is "
            f"(now {os.getcwd()})"
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UserError(f"{origin} names {name}, which fails: {type(error).__name__}: {one_line(error)}") from error


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """All fields of a config by dotted name, in order."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
