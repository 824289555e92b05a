"""Config files are user programs: any error in one is reported in one line that names the file."""

import json
import os

import pytest

from configs.base import runner
from diffusion_jax.errors import UserError
from experiments.ground import cli
from experiments.ground.config_files import import_parts
from tests import processes

GOOD = "from configs.digits_unet import get_config\n"
BASE = "from configs.digits_unet import get_config as base\n\n"


def line_of(path, call=cli.load_config):
    with pytest.raises(UserError) as caught:
        call(str(path))
    line = str(caught.value)
    assert "\n" not in line
    assert str(path).partition(":")[0] in line, "the file is named"
    return line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config():\n    return None\n", "returned NoneType"),
        ("def get_config():\n    return {'model': {}}\n", "returned dict"),
        ("def get_config():\n    return [1]\n", "returned list"),
        ("def get_config():\n    print('hello')\n", "returned NoneType"),
        (BASE + "from ml_collections import FrozenConfigDict\nget_config = lambda: FrozenConfigDict(base())\n",
         "returned FrozenConfigDict"),
        ("from ml_collections import ConfigDict\nget_config = ConfigDict\n", "lacks data.dataset, which has no"),
        (BASE + "def get_config():\n    c = base()\n    del c.log; c.log = 3\n    return c\n", "log must be a"),
        (BASE + "def get_config():\n    c = base()\n    c.lgo = {}\n    return c\n", "did you mean 'log'"),
        (BASE + "def get_config():\n    c = base()\n    c.log.evry = 3\n    return c\n", "did you mean 'log.every'"),
        (BASE + "def get_config():\n    c = base()\n    c.train = type(c)()\n    return c\n", "lacks train.steps"),
        (BASE + "def get_config():\n    c = base()\n    c.model = type(c)()\n    return c\n", "lacks model"),
        (BASE + "def get_config():\n    c = base()\n    c.loop = c\n    return c\n", "RecursionError"),
        (BASE + "def get_config():\n    del base().no_such\n", "no_such"),
        ("import sys\nsys.exit()\n", "it exits"),
        ("def get_config():\n    import sys\n    sys.exit(0)\n", "it exits (SystemExit: 0)"),
        ("import os\nos._exit(0)\n", "it exits (SystemExit: 0)"),
        ("quit()\n", "it exits"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("raise BaseException('own')\n", "BaseException: own"),
        ("raise ValueError('a\\nb')\n", "ValueError: a"),
        ("assert False\n", "AssertionError"),
        ("def get_config(:\n", "line 1 is not Python"),
        ("\n\n  x = 1\n y = 2\n", "line 3 is not Python"),
        ("(" * 500, "not Python"),
        ("x = 1\n", "no function get_config()"),
        ("get_config = 3\n", "no function get_config()"),
        ("def get_config(size):\n    pass\n", "get_config(size) does not fit; it wants a text"),
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("", "no function get_config()"),
        (b"\x00\x01\x02", "null bytes"),
        (b"\xff\xfe" + GOOD.encode("utf-16-le"), "not Python"),
        ("x = 'ä'\n".encode("latin-1"), "not Python"),
        (b"\x7fELF\x02\x01" + bytes(range(256)), "not Python"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"#" * 2**23, "too many"),
    ],
)  # fmt: skip
def test_files_that_are_no_configs(tmp_path, content, message):
    path = tmp_path / "own.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    exit_before = os._exit
    assert message in line_of(path)
    assert os._exit is exit_before


def test_what_is_no_file(tmp_path):
    assert "no such file" in line_of(tmp_path / "none.py")
    assert "is a folder" in line_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")
    assert "not a regular file" in line_of(tmp_path / "pipe.py")
    (tmp_path / "circle.py").symlink_to(tmp_path / "circle.py")
    assert "cannot read" in line_of(tmp_path / "circle.py")
    (tmp_path / "config.json").write_text("{}")
    assert f"--config=configs/from_json.py:{tmp_path / 'config.json'}" in line_of(tmp_path / "config.json")


def test_an_argument_that_nobody_takes(tmp_path):
    (tmp_path / "own.py").write_text("def get_config():\n    pass\n")
    assert "get_config() does not fit; leave out what follows the colon" in line_of(f"{tmp_path / 'own.py'}:x=1")
    assert "is not objective=NAME" in line_of("configs/digits_unet.py:objective=none")


@pytest.mark.parametrize("content", ["[1]", "3", "{", "", '{"model": 3}', '{"seed": 1, "seed": 2}', "null", '"text"'])
def test_json_that_is_no_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    line_of(f"configs/from_json.py:{tmp_path / 'config.json'}")
    line_of(f"configs/from_json.py:{tmp_path / 'none.json'}")


def test_json_with_a_byte_order_mark_and_json_that_is_no_file(tmp_path):
    text = json.dumps(cli.load_config("configs/digits_unet.py").to_dict(), default=list)
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
    assert cli.load_config(f"configs/from_json.py:{tmp_path / 'config.json'}").model.name == "unet"
    os.mkfifo(tmp_path / "pipe.json")
    assert "is not a regular file" in line_of(f"configs/from_json.py:{tmp_path / 'pipe.json'}")


def test_the_same_for_ablations(tmp_path):
    from experiments.sweeps.ablation import Ablation

    path = tmp_path / "ablation.py"
    sweep = "\ndef sweep_seed():\n    yield '1', {'seed': 1}\n"
    for content in ("import sys\nsys.exit(0)\n", "def f(:\n", "def get_config():\n    return {}\n" + sweep):
        path.write_text(content)
        line_of(path, Ablation.read)


def test_what_a_config_prints_does_not_mix_with_the_output(tmp_path, capsys):
    (tmp_path / "own.py").write_text("print('noise')\n" + GOOD)
    cli.load_config(str(tmp_path / "own.py"))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "noise\n")


def test_a_config_may_define_dataclasses_and_reads_anew(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Own:\n    size: int = 3\n\n" + BASE + "def get_config():\n"
        "    config = base()\n    config.train.steps = Own().size\n    return config\n"
    )
    assert cli.load_config(str(path)).train.steps == 3
    path.write_text(path.read_text().replace("int = 3", "int = 4"))
    assert cli.load_config(str(path)).train.steps == 4
    assert list(tmp_path.iterdir()) == [path], "no cache beside it"


def test_what_a_config_leaves_out_has_its_default(tmp_path):
    """Omitted fields get their defaults, also in locked configs and in configs that do not use configs/base.py."""
    (tmp_path / "own.py").write_text(
        BASE + "def get_config():\n    config = base()\n    del config.log, config.ema.widths, config.imports\n"
        "    del config.sampling.grid\n    return config.lock()\n"
    )
    config, whole = cli.load_config(str(tmp_path / "own.py")), cli.load_config("configs/digits_unet.py")
    assert config.is_locked
    assert config.log.to_dict() == runner().log.to_dict()
    assert (config.ema.to_dict(), config.imports) == (whole.ema.to_dict(), ())
    assert config.sampling.to_dict() == whole.sampling.to_dict()


def test_one_line_through_a_process(command, tmp_path):
    (tmp_path / "own.py").write_text("import sys\nprint('noise')\nsys.exit(0)\n")
    for module in ("train", "ablate", "params"):
        assert "own.py" in command.fails(module, f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'run'}") \
            if module != "params" else command.fails(module, f"--config={tmp_path / 'own.py'}")  # fmt: skip
    assert not (tmp_path / "run").exists()


PARTS = """
import dataclasses
from typing import ClassVar

from diffusion_jax.metrics import METRICS
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.samplers.ddim import DDIM


@SAMPLERS.register("own_sampler")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSampler(DDIM):
    pass


@METRICS.register("own_metric")
@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnMetric:
    title: ClassVar[str] = "Own"
    about: ClassVar[str] = "A number of one's own."
    headline: ClassVar[str] = "own_metric"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})

    def __call__(self, samples, *, train=None, test=None):
        return {"own_metric": 42.0}
"""
OWN = """
from configs.digits_unet import get_config as base


def get_config():
    config = base()
    config.imports = ("own_package.parts",)
    config.sampling.sampler.name = "own_sampler"
    config.evaluation.metrics = ("own_metric",)
    config.checkpoint.keep_best = 0
    return config
"""


@pytest.fixture
def own(tmp_path):
    """A directory with its own package and a config that imports it."""
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_package" / "parts.py").write_text(PARTS)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


@pytest.fixture
def there(command, own, monkeypatch):
    """The commands, run in the directory of the package."""
    monkeypatch.setitem(command.environment, "PYTHONPATH", str(processes.ROOT))
    monkeypatch.setattr(processes, "ROOT", own)
    return command


def small(command, own):
    """The arguments of a training of two steps with the config."""
    arguments = command.train_arguments(own / "run", "--config.train.steps=2", config=own / "own.py")
    return [argument for argument in arguments if not argument.startswith("--config.sampling.sampler")]


@pytest.mark.slow
def test_parts_of_ones_own_are_known_where_they_are_used(there, own):
    there.run("train", *small(there, own))
    assert json.loads((own / "run" / "evaluation.json").read_text())["own_metric"]["own_metric"] == 42
    there.run("sample", f"--workdir={own / 'run'}", "--num_samples=4", "--sampler=own_sampler", "--steps=2")


def test_parts_of_ones_own_that_are_not_there(command, own):
    line = command.fails("params", f"--config={own / 'own.py'}")
    assert "config.imports names own_package.parts: there is no such module" in line
    assert "run from the directory where it is" in line


@pytest.mark.slow
def test_parts_of_ones_own_are_known_to_every_command(there, own):
    there.run("train", *small(there, own))
    out = own / "numbers.json"
    chosen = ("--metrics=own_metric", "--num_samples=4", f"--out={out}", "--sampler=own_sampler", "--steps=2")
    there.run("evaluate", f"--workdir={own / 'run'}", *chosen)
    assert json.loads(out.read_text())["own_metric"]["own_metric"] == 42
    there.run("params", f"--config={own / 'own.py'}", f"--config.data.data_dir={there.data_dir}")
    there.run("convert", f"--source={own / 'run'}", f"--target={own / 'own.safetensors'}")
    (own / "ablation.py").write_text("from own import get_config\n\n\ndef sweep_steps():\n    for steps in (2, 3):\n"
                                     "        yield str(steps), {'sampling.steps': steps}\n")  # fmt: skip
    fields = [argument.removeprefix("--config.") for argument in small(there, own)[2:]]
    there.run(
        "ablate",
        f"--config={own / 'ablation.py'}",
        f"--workdir={own / 'cells'}",
        *(f"--set={field}" for field in fields if not field.startswith("evaluation.metrics")),
    )
    assert len(list((own / "cells" / "cells").glob("*.json"))) == 2


def test_files_and_modules_that_can_not_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*names):
        with pytest.raises(UserError) as caught:
            import_parts(names)
        return str(caught.value)

    assert "no such module; install it" in refused("no_such_package.parts")
    assert "no such file" in refused("./no_such_file.py")
    (tmp_path / "fails_here.py").write_text("raise RuntimeError('own\\nerror')\n")
    assert "names fails_here, which fails: RuntimeError: own" in refused("fails_here")
    (tmp_path / "exits_here.py").write_text("import sys\nsys.exit(0)\n")
    assert "SystemExit" in refused(str(tmp_path / "exits_here.py"))
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    assert "needs the module no_such_dependency: install it" in refused("needs_more")
    (tmp_path / "json.py").write_text("")
    assert "another module is called json" in refused("./json.py")
    for wrong in ("one_text", None, 3, ("",), (3,)):
        with pytest.raises(UserError, match="needs a tuple of names of modules"):
            import_parts(wrong)
    (tmp_path / "works_here.py").write_text("VALUE = 1\n")
    import_parts(["works_here", "./works_here.py", f"{tmp_path}/works_here.py"])
