"""The command `diffusion-jax`: every command of the runner, from any directory.

    diffusion-jax train --config=digits_unet --workdir=runs/digits

`diffusion-jax prepare-data` is `python -m experiments.prepare_data` of a clone. An installation keeps the runner and
the configs in a folder of this package, so that no package of a general name is installed beside it; only a process of
this command sees them.

    eval "$(diffusion-jax completion bash)"      # in ~/.bashrc; in ~/.zshrc: eval "$(diffusion-jax completion zsh)"

lets the shell complete commands, their flags, and the names of configs.
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


def configs() -> list[str]:
    """The names that `--config` finds anywhere."""
    folder = home() / "configs"
    files = sorted(path for path in folder.rglob("*.py") if "def get_config" in path.read_text())
    return [path.relative_to(folder).with_suffix("").as_posix() for path in files]


def flags_of(path: Path) -> list[str]:
    """The flags of a command, such as --workdir= and --restart, as its file says."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = [
        f"--{ast.literal_eval(call.args[0]) if call.args else call.func.attr}"
        f"{'' if call.func.attr == 'boolean' else '='}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in ("FLAGS", "flags")
        and (call.func.attr == "config" or (call.args and isinstance(call.args[0], ast.Constant)))
    ]
    if any(isinstance(call.func, ast.Name) and call.func.id == "SamplingFlags" for call in calls):
        found += flags_of(home() / "experiments" / "ground" / "sampling_flags.py")
    return found


_COMPLETION = """\
_diffusion_jax() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" name="${{COMP_WORDS[1]}}" flags=""
    [[ "$word" == "=" ]] && word="" && before="="
    if [[ "$before" == "=" ]]; then
        local flag="${{COMP_WORDS[COMP_CWORD-2]}}"
        [[ "${{COMP_WORDS[COMP_CWORD]}}" == "=" ]] && flag="${{COMP_WORDS[COMP_CWORD-1]}}"
        if [[ "$flag" == "--config" ]]; then
            COMPREPLY=($(compgen -W "{configs}" -- "$word") $(compgen -f -X '!*.py' -- "$word"))
        else
            COMPREPLY=($(compgen -f -- "$word"))
        fi
        return
    fi
    if [[ "$COMP_CWORD" == 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "$name" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
    compopt -o nospace 2>/dev/null
}}
complete -o filenames -F _diffusion_jax diffusion-jax
"""


def completion(shell: str) -> str:
    """What lets `shell`, bash or zsh, complete the words of this command."""
    known = commands()
    cases = [f'        {name}) flags="{" ".join(flags_of(path))}";;' for name, path in known.items()]
    script = _COMPLETION.format(configs=" ".join(configs()), commands=" ".join(known), cases="\n".join(cases))
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def help_text() -> str:
    """The list of commands, with the first sentence of each command's docstring."""
    lines = ["diffusion-jax COMMAND [--flag=value ...]", "", "Commands; diffusion-jax COMMAND --help shows one:", ""]
    for name, path in commands().items():
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        lines.append(f"  {name:18}{summary}")
    lines += ["", "diffusion-jax completion bash (or zsh) prints what lets the shell complete all of these."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; it ends the process with its own exit code."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in _HELP or name == "--version":
        with contextlib.suppress(BrokenPipeError):
            print(__version__ if name == "--version" else help_text(), flush=True)
        return 0
    known = commands()
    if name == "completion":
        if rest not in (["bash"], ["zsh"]):
            print("error: give the shell: diffusion-jax completion bash, or zsh", file=sys.stderr)
            return 2
        print(completion(*rest))
        return 0
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
