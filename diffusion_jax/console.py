"""The command `diffusion-jax`: every command of the runner, from any directory.

    diffusion-jax train --config=digits_unet --workdir=runs/digits

`diffusion-jax prepare-data` is `python -m experiments.prepare_data` of a clone. An installation keeps the runner and
the configs in a folder of this package, so that no package with a name as general as `experiments` is installed; only
the processes of this command see them.
"""

import ast
import contextlib
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax import __version__

_HELP = ("--help", "-h", "help")
running = False  # whether this process runs a command for `main`; messages then name commands in this form


def home() -> Path:
    """The folder that has `experiments` and `configs`: this package in an installation, its parent in a clone."""
    package = Path(__file__).resolve().parent
    installed = package / "_runner"
    return installed if installed.is_dir() else package.parent


def commands() -> dict[str, Path]:
    """The file of every command by its name."""
    return {
        path.stem.replace("_", "-"): path
        for path in sorted((home() / "experiments").glob("*.py"))
        if not path.stem.startswith("_")
    }


def help_text() -> str:
    """The list of commands, with the first sentence of each command's docstring."""
    lines = ["diffusion-jax COMMAND [--flag=value ...]", "", "Commands; diffusion-jax COMMAND --help shows one:", ""]
    for name, path in commands().items():
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        lines.append(f"  {name:18}{summary}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; it ends the process with its own exit code."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in _HELP or name == "--version":
        with contextlib.suppress(BrokenPipeError):
            print(__version__ if name == "--version" else help_text(), flush=True)
        return 0
    known = commands()
    if name.replace("_", "-") not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(home()))
    sys.argv = [f"diffusion-jax {name}", *rest]
    global running
    running = True
    try:
        runpy.run_module(f"experiments.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)
    finally:
        running = False
    return 0


if __name__ == "__main__":
    sys.exit(main())
