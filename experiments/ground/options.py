"""The flags of one command: each has a meaning and a domain, and a value outside it is an error of one line.

    FLAGS = cli.Flags(__name__, __doc__)
    STEPS = FLAGS.integer("steps", None, "transitions of the time grid", lower=1, upper=cli.MOST_STEPS)

The flags belong to their command, not to the process, so that any number of commands can be imported into one. Only
the standard library, absl and ml_collections are imported here: `--help` and wrong flags need no JAX.
"""

import contextlib
import csv
import difflib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion_jax.errors import UserError
from experiments.ground.config_files import HOME, INSTALLED, flatten, load_config, one_line, takes_resolution
from experiments.ground.described import described
from experiments.ground.fields import PARTS, complete
from experiments.ground.readers import Because, data_set_at, path_of, plain_text, whole_number
from experiments.ground.renamed import new_flags

MOST_STEPS = 100_000
MOST_SAMPLES = 10_000_000
MOST_SEED = 2**32 - 1
MOST_COUNT = 2**31 - 1
"""Upper bounds of domains: for transitions, samples, seeds, and steps of a training."""
HELP = {"--help", "-help", "-h", "--helpfull", "-helpfull", "--helpshort", "-helpshort"}
Check = Callable[[str], Any]


class Flags:
    """The flags of one command.

    Args:
      module: `__name__` of the command; "__main__" if it is the main program.
      text: the command's docstring, which `--help` shows.
    """

    def __init__(self, module: str, text: str | None):
        self.is_program = module == "__main__"
        self.text = inspect.cleandoc(text or "")
        self._values = flags.FlagValues()
        self._described: dict[str, str] = {}
        self._argv: list[str] = []
        self._config: ConfigDict | None = None
        self._about_arguments = ""
        self.arguments: list[str] = []

    def take_arguments(self, name: str, meaning: str) -> None:
        """Let the command take words that are no flags: `arguments` holds them, and the help calls them `name`."""
        self._about_arguments = f"{name} ...\n{meaning}"

    def integer(
        self, name: str, default: int | None, meaning: str, *, lower: int = 0, upper: int = MOST_COUNT
    ) -> flags.FlagHolder:
        """A whole number in [lower, upper]."""
        allowed = f"a whole number from {lower:,} to {upper:,}"
        return self._define(name, default, meaning, whole_number(lower, upper), allowed)

    def number(self, name: str, default: float | None, meaning: str, *, lower: float, upper: float) -> flags.FlagHolder:
        """A finite number in [lower, upper]."""

        def read(text: str) -> float:
            value = float(text)
            if not lower <= value <= upper:  # this catches nan too
                raise ValueError
            return value

        return self._define(name, default, meaning, read, f"a number from {lower:,g} to {upper:,g}")

    def boolean(self, name: str, default: bool, meaning: str) -> flags.FlagHolder:
        """--name, --noname, --name=true or --name=false."""
        holder = flags.DEFINE_bool(name, default, meaning, flag_values=self._values)
        known = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        self._values[name].parser = _Parser(name, lambda text: known[text.lower()], "true or false")
        self._described[name] = f"--[no]{name}\n{meaning}; by default {str(default).lower()}"
        return holder

    def choice(self, name: str, default: str | None, known: Sequence[str], meaning: str) -> flags.FlagHolder:
        """One of several words."""
        words = [word for word in known if word]
        return self._define(name, default, meaning, lambda text: words[words.index(text)], f"one of {', '.join(words)}")

    def string(
        self, name: str, default: str | None, meaning: str, *, check: Check | None = None, allowed: str = "a name"
    ) -> flags.FlagHolder:
        """A text that is not empty; `check` converts it, or raises ValueError."""
        return self._define(name, default, meaning, _both(plain_text, check), allowed)

    def words(self, name: str, default: str | None, meaning: str) -> flags.FlagHolder:
        """A text in one line, which may be empty."""
        return self._define(name, default, meaning, lambda text: plain_text(text) if text.strip() else "", "a text")

    def path(self, name: str, default: str | None, meaning: str, *, suffix: str = "") -> flags.FlagHolder:
        """A path, in which ~ is the home directory; with `suffix`, the path of a file with this ending."""

        def read(text: str) -> str:
            path = path_of(text)
            if suffix and not os.path.basename(path).endswith(suffix):
                raise UserError(f"--{name} must end in {suffix}, got {_short(text)}")
            return path

        return self._define(name, default, meaning, read, f"a path that ends in {suffix}" if suffix else "a path")

    def strings(
        self,
        name: str,
        default: Sequence[str] | None,
        meaning: str,
        *,
        check: Check | None = None,
        allowed: str = "names with commas between them",
    ) -> flags.FlagHolder:
        """Texts with commas between them, none of them empty."""
        item = _both(plain_text, check)

        def read(text: str) -> list[Any]:
            (parts,) = csv.reader([text], strict=True)
            return [item(part.strip()) for part in parts] or [item("")]

        return self._define(name, default, meaning, read, allowed)

    def paths(self, name: str, default: Sequence[str] | None, meaning: str) -> flags.FlagHolder:
        """Paths with commas between them."""
        return self.strings(name, default, meaning, check=path_of, allowed="paths with commas between them")

    def repeated(self, name: str, meaning: str, *, check: Check, allowed: str) -> flags.FlagHolder:
        """A text that may be given several times; the value is the list."""
        parser = _Parser(name, _both(plain_text, check), allowed)
        self._describe(name, [], f"{meaning}; may be repeated", allowed)
        return flags.DEFINE_multi(parser, flags.ArgumentSerializer(), name, [], meaning, flag_values=self._values)

    def config(self) -> flags.FlagHolder:
        """--config, a file with `get_config()`; any field is overridden by --config.a.b=value."""
        meaning = (
            "file of the config, or the name of one in configs/, for example digits_unet or papers/edm_cifar10; "
            "FILE:TEXT hands the text to its get_config"
        )
        self._describe("config", None, f"{meaning}; --config.group.field=VALUE sets a field", "a path")
        holder = config_flags.DEFINE_config_file("config", None, meaning, flag_values=self._values, sys_argv=self._argv)
        self._values["config"].parser = _Loaded(lambda: self._config)
        return holder

    def read(self, argv: Sequence[str]) -> None:
        """Set the flags from a command line, the program's name first.

        Raises:
          UserError: a flag is unknown, a value is not in its domain, a config cannot be read, or an argument is no
            flag.
        """
        self._argv[:] = argv
        for arg in argv[1:]:
            if re.match(r"--?(flagfile|undefok)(=|$)", arg):
                raise UserError(f"unknown flag {arg.partition('=')[0]}; give the flags themselves, see --help")
        known: list[str] = []
        try:
            if "config" in self._values:
                argv = self._argv[:] = self._written_out(argv)
                self._config = self._named_config(argv)
                known = [] if self._config is None else list(flatten(self._config))
                argv = self._argv[:] = new_flags(argv, self._objective())
            rest = self._values(argv)
        except UserError:
            raise
        except Exception as error:  # config_flags raises many types for a missing field, or one of another type
            raise UserError(_explain(argv, known, error, self._objective())) from error
        if self._config is not None:  # --config.data={} takes away what the file has stated
            complete(self._config)
        self.arguments = list(rest[1:])
        if self.arguments and not self._about_arguments:
            raise UserError(f"unexpected argument {_short(rest[1])}; options begin with --, see --help")

    def _objective(self) -> str:
        """The name of the config's objective; "" if there is none."""
        spec = self._config.get("objective") if self._config is not None else ""
        name = spec.get("name") if isinstance(spec, ConfigDict) else spec
        return name if isinstance(name, str) else ""

    def assume_defaults(self) -> None:
        """Read no command line: the flags of an imported module keep their defaults."""
        self._values.unparse_flags()
        self._values.mark_as_parsed()

    def __iter__(self) -> Iterator[str]:
        """The names of the flags."""
        return iter(self._described)

    def __getitem__(self, name: str) -> Any:
        """The value that was last read."""
        return self._values[name].value

    def config_words(self) -> list[str]:
        """The words of the command line that determine the config, for a command that starts another one."""
        words, following = self._argv, [*self._argv[1:], ""]
        pairs = zip(words, following, strict=True)
        ours = [(word, after) for word, after in pairs if re.match(r"--?(no)?config(\.|=|$)", word)]
        alone = [word for word, after in ours if "=" in word or after.startswith("-") or not after]
        return [word if word in alone else f"{word}={after}" for word, after in ours]

    def help(self, argv: Sequence[str]) -> str:
        """The purpose of the command, its flags, and the fields of the config that the command line names."""
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        lines = [self.text, "", f"Flags of python -m {spec.name if spec else os.path.basename(argv[0])}:", ""]
        lines = [spoken(line) for line in lines]
        for text in filter(None, (self._about_arguments, *self._described.values())):
            head, _, meaning = text.partition("\n")
            lines += [f"  {head}", _indented(meaning)]
        try:
            config = self._named_config(self._written_out(argv)) if "config" in self._values else None
        except UserError as error:
            return "\n".join([*lines, "", one_line(error)])
        if config is not None:
            lines += ["", "Fields of the config, with their values there (docs/config.md has all there are):", ""]
            for name, value, meaning in described(config):
                lines += [f"  --config.{name}={value!r}", *([_indented(meaning)] if meaning else [])]
        return "\n".join(lines)

    def _named_config(self, argv: Sequence[str]) -> ConfigDict | None:
        """The config that the command line names last, if any."""
        named = _given(argv, "config")
        if named is None:
            return None
        try:
            path = _Parser("config", path_of, "the path of a file").parse(named)
        except _Refused as error:
            raise UserError(str(error)) from error
        return load_config(path)

    def _written_out(self, argv: Sequence[str]) -> list[str]:
        """A command line with --data and --resolution replaced by the fields that they stand for, if the command has
        them.

        A config whose `get_config` takes a resolution receives it; for other configs it sets `data.image_size`. Errors
        in the two flags are reported by the flags themselves.
        """
        words, named = list(argv), _given(argv, "config")
        if "resolution" not in self._values or named is None:
            return words
        with contextlib.suppress(ValueError):
            if data := _given(argv, "data"):
                words.append(f"--config.data.dataset={data_set_at(path_of(data))}")
        if (side := _given(argv, "resolution")) and side.isdecimal():
            if takes_resolution(named):
                words = _with_config(words, f"{named}:{side}")
            else:
                words.append(f"--config.data.image_size={side}")
        return words

    def _define(self, name: str, default: Any, meaning: str, check: Check, allowed: str) -> flags.FlagHolder:
        parser = _Parser(name, check, allowed)
        holder = flags.DEFINE(
            parser, name, None, meaning, flag_values=self._values, serializer=flags.ArgumentSerializer()
        )
        flag = self._values[name]
        flag.default = flag.value = default  # unchanged: "" may stand for nothing
        self._describe(name, default, meaning, allowed)
        return holder

    def _describe(self, name: str, default: Any, meaning: str, allowed: str) -> None:
        shown = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        said = "" if shown in (None, "") or "by default" in meaning else f"; by default {shown}"
        self._described[name] = f"--{name}=VALUE\n{meaning} ({allowed}){said}"


def _given(argv: Sequence[str], name: str) -> str | None:
    """The value that a command line gives a flag last; None if it gives none."""
    following = [*argv[1:], ""]
    values = [
        arg.partition("=")[2] if "=" in arg else after
        for arg, after in zip(argv, following, strict=True)
        if arg.partition("=")[0] in (f"--{name}", f"-{name}")
    ]
    return values[-1] if values else None


def _with_config(argv: Sequence[str], name: str) -> list[str]:
    """The command line with another config."""
    before, flags_of_it = ["", *argv], ("--config", "-config")
    return [
        f"--config={name}" if word.partition("=")[0] in flags_of_it else word
        for last, word in zip(before, argv, strict=False)
        if last not in flags_of_it
    ]


def spoken(text: str) -> str:
    """A text whose commands have the form in which this process was started: `python -m experiments.X` or
    `diffusion-jax X`."""
    console = sys.modules.get("diffusion_jax.console")
    if HOME.name != INSTALLED and (console is None or not console.running):
        return text
    return re.sub(r"python -m experiments\.(\w+)", lambda found: f"diffusion-jax {found[1].replace('_', '-')}", text)


def _indented(text: str) -> str:
    return textwrap.fill(text, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)


class _Refused(flags.Error):
    """A value outside the domain of its flag; absl passes it on unchanged."""


class _Parser(flags.ArgumentParser):
    """Checks a value against the domain of its flag."""

    def __init__(self, name: str, check: Check, allowed: str):
        super().__init__()
        self._name, self._check, self._allowed = name, check, allowed

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        try:
            return self._check(argument)
        except UserError as error:
            named = "" if f"--{self._name}" in str(error) else f"--{self._name}: "
            raise _Refused(f"{named}{error}") from error
        except (ValueError, KeyError, OverflowError, csv.Error) as error:
            why = f" ({error})" if isinstance(error, Because) else ""
            raise _Refused(f"--{self._name} wants {self._allowed}, got {_short(argument)}{why}") from error

    def flag_type(self) -> str:
        return self._allowed


class _Loaded(flags.ArgumentParser):
    """The config that has been loaded already, instead of the named file."""

    def __init__(self, loaded: Callable[[], ConfigDict | None]):
        super().__init__()
        self._loaded = loaded

    def parse(self, path: Any) -> Any:
        config = self._loaded()
        if config is not None:
            config.lock()
        return config


def _both(first: Check, second: Check | None) -> Check:
    return first if second is None else lambda text: second(first(text))


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _whether_read(group: str, objective: str) -> str:
    """A phrase about whether an objective reads a group that the config lacks; imports JAX."""
    from diffusion_jax.objectives import OBJECTIVES

    if objective not in OBJECTIVES:
        return ""
    reads = OBJECTIVES.example(objective).reads
    if group in reads:
        return f", which objective {objective} reads: state it in the file of the config"
    known = ", ".join(part for part in PARTS if part in reads)
    return f", and objective {objective} does not read one; of such groups it reads {known or 'none'}"


def _explain(argv: Sequence[str], known: Sequence[str], error: Exception, objective: str = "") -> str:
    """Name the wrong flag and the nearest valid one; `objective` is the name of the config's objective."""
    if isinstance(error, _Refused):
        return str(error)
    groups = {name.rpartition(".")[0] for name in known}
    groups |= {name.partition(".")[0] for name in known}
    fields = [arg.removeprefix("--config.").partition("=")[0] for arg in argv if arg.startswith("--config.")]
    for name in fields if known else ():
        group = name.partition(".")[0]
        if group in PARTS and group not in groups:
            return f"--config.{name}: the config has no group {group}{_whether_read(group, objective)}"
        if name not in known and name not in groups:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            return f"the config has no field {name!r}{hint}"
    if fields and not known:
        return f"--config.{fields[0]} sets a field of a config: give --config=FILE before it"
    text = one_line(error)
    match = re.match(r"flag --(config\.\S+?)=(.*?): (.*)", text)
    if match:
        return f"wrong type for --{match[1]}: {match[3]}"
    return text.removesuffix(".") + "; see --help"
