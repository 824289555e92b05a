"""The documentation is correct: its examples run, and its commands, fields, paths and symbols exist."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from diffusion_jax.data import datasets
from diffusion_jax.likelihood import METRICS
from diffusion_jax.samplers import SAMPLERS
from experiments.ground.cli import flatten
from tests.docs.run_blocks import python_blocks

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
DOCSTRINGS = sorted(path for room in ("configs", "experiments", "benchmarks") for path in (ROOT / room).rglob("*.py"))
# The names that the blocks of docs/extending.md register, and the files whose conformance tests cover them.
EXAMPLES = {
    "power": "tests/schedulers/test_schedules.py",
    "data_minus_noise": "tests/schedulers/test_predictions.py",
    "ddpm_then_ddim": "tests/samplers/test_samplers.py",
    "pseudo_huber": "tests/objectives/test_conformance.py",
    "convnet": "tests/models/test_conformance.py",
    "brightness": "tests/metrics/test_metrics.py",
}
FRESH_RUN = """
import pathlib

import experiments.ground.workdir
from configs.digits_unet import get_config
from experiments.building.restoring import describe_run, open_checkpoints
from experiments.building.wiring import Experiment

experiment = Experiment(get_config())
experiments.ground.workdir.claim(pathlib.Path("runs/digits"), experiment.config, experiment.info)
describe_run(experiment, "runs/digits")
checkpointer = open_checkpoints(experiment, "runs/digits")
checkpointer.save(0, experiment.layout.init(experiment.init_state).saved, {}, {})
checkpointer.close()
"""


def test_every_page_is_in_the_site():
    """Every page is in the site's navigation; the strict build of the site fails otherwise."""
    folder = ROOT / "docs"
    pages = {str(p.relative_to(folder)) for ending in ("md", "ipynb") for p in folder.rglob(f"*.{ending}")}
    navigation = (ROOT / "mkdocs.yml").read_text().rpartition("\nnav:\n")[2]
    named = set(re.findall(r": (\S+)$", navigation, re.M))
    assert pages <= named


def text_of(path: Path) -> str:
    """The text of a page, or the docstring of a module."""
    return path.read_text() if path.suffix == ".md" else ast.get_docstring(ast.parse(path.read_text())) or ""


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def start(*arguments, cwd, devices=1):
    """Start a Python process in another directory with the repository on its path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
    )


def output(process):
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return out


RUN_BLOCKS = ROOT / "tests" / "docs" / "run_blocks.py"


def test_examples_of_extending_are_picked_up_and_pass_all_conformance_tests(tmp_path):
    arguments = (RUN_BLOCKS, ROOT / "docs" / "extending.md", f"--names={','.join(EXAMPLES)}")
    out = output(start(*arguments, cwd=tmp_path, devices=8))
    for name, path in EXAMPLES.items():
        assert re.search(rf"^collected {re.escape(path)}::.*\[(.*-)?{name}(-.*)?\]", out, re.M), (
            f"{name} in {path}\n{out}"
        )


def test_the_example_data_set_is_one(tmp_path):
    """The example data set can be read through the pipeline; no conformance tests cover data sets."""
    page = ROOT / "docs" / "extending.md"
    source = next(source for _, source in python_blocks(page.read_text()) if "datasets.register" in source)
    more = """
from diffusion_jax.data import Pipeline
pipeline = Pipeline(dataset="stripes", batch_size=16, flip=True)
batch = next(pipeline.batches())
assert batch["data"].shape == (16, 8, 8, 1) and batch["data"].min() == -1 and batch["data"].max() == 1
assert set(batch["label"]) == {0, 1} and pipeline.info.class_names == ("horizontal", "vertical")
"""
    output(start("-c", source + more, cwd=tmp_path))


def block_of_the_readme(word: str) -> int:
    blocks = python_blocks((ROOT / "README.md").read_text())
    return next(i for i, (_, source) in enumerate(blocks) if word in source)


def test_readme_reads_a_run_back(tmp_path):
    output(start("-c", FRESH_RUN, cwd=tmp_path))
    output(start(RUN_BLOCKS, ROOT / "README.md", f"--block={block_of_the_readme('load_model')}", cwd=tmp_path))
    assert (tmp_path / "runs" / "digits" / "model" / "model.json").exists()


def test_the_page_of_python_runs(tmp_path):
    """The blocks of docs/python.md run in a directory that contains a run and the golden files."""
    output(start("-c", FRESH_RUN, cwd=tmp_path))
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    assert "class_accuracy" in output(start(RUN_BLOCKS, ROOT / "docs" / "python.md", cwd=tmp_path))
    assert (tmp_path / "runs" / "digits" / "three_and_seven.png").exists()
    assert (tmp_path / "runs" / "converted" / "model.json").exists()


def test_every_block_of_the_readme_is_run():
    blocks = python_blocks((ROOT / "README.md").read_text())
    assert {block_of_the_readme("load_model")} == set(range(len(blocks)))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(module, words) of every `python -m ...` command of this repository; optional words lose their brackets."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"python -m ((?:experiments|benchmarks)(?:\.\w+)+)([^`\n#;]*)", text)
    return [(module, rest.replace("[", " ").replace("]", " ").split()) for module, rest in found]


def defined_flags(module: str) -> dict[str, str]:
    """The flags of a module by name, with the type of their definition."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    calls = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and "FLAGS." in ast.unparse(node.value)
    ]
    own = {call.args[0].value if call.args else "config": call.func.attr for call in calls}
    return {**own, **shared_flags()} if "SamplingFlags(FLAGS" in ast.unparse(tree) else own


def shared_flags() -> dict[str, str]:
    """The sampling flags that several commands share."""
    tree = ast.parse((ROOT / "experiments" / "ground" / "sampling_flags.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func)[:6] == "flags."]
    return {call.args[0].value: call.func.attr for call in calls}


def config_fields(path: str) -> dict[str, object]:
    namespace: dict[str, object] = {"ConfigDict": ConfigDict}
    path, _, argument = path.partition(":")
    exec(compile((ROOT / path).read_text(), path, "exec"), namespace)
    return flatten(namespace["get_config"](*[argument] if argument else []))


def is_open(value: str) -> bool:
    """Whether a value is a placeholder: $rate, ..., HOST:PORT, N."""
    return not value or "$" in value or "..." in value or bool(re.search(r"\b[A-Z]+\b", value))


def check_words(module: str, words: list[str], flags: dict[str, str]) -> None:
    config = next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")
    unwritten = is_open(config) or config.startswith("configs/from_json.py")
    fields = config_fields("configs/digits_unet.py" if unwritten else config)
    for word in (word for word in words if word.startswith("--")):
        name, _, value = word.removeprefix("--").partition("=")
        if name.startswith("config."):
            field = name.removeprefix("config.")
            assert "config" in flags, f"{module} takes no --config"
            assert field in fields, f"{config} has no field {field}"
            if not is_open(value) and not isinstance(fields[field], str):
                kind = (int, float) if isinstance(fields[field], float) else type(fields[field])
                assert isinstance(ast.literal_eval(value), kind), word
            continue
        assert name in flags, f"{module} has no flag --{name}"
        if is_open(value):
            continue
        if flags[name] == "integer":
            int(value)
        known = {"sampler": SAMPLERS, "metrics": METRICS}.get(name, ())
        assert not known or all(part in known or part in EXAMPLES for part in value.split(",")), word


@pytest.mark.parametrize("path", [*PAGES, *DOCSTRINGS], ids=page_id)
def test_commands_exist(path):
    for module, words in commands(text_of(path)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"there is no {module}"
        check_words(module, words, defined_flags(module))


def test_commands_are_found():
    assert ("experiments.sample", ["--workdir=runs/digits", "--num_samples=64"]) in commands(
        text_of(ROOT / "README.md")
    )
    module, words = commands("a\n    python -m experiments.train --config=x \\\n   [--config.train.steps=2 ...]  # b")[
        0
    ]
    assert (module, words) == ("experiments.train", ["--config=x", "--config.train.steps=2", "..."])
    with pytest.raises(AssertionError, match="no field"):
        check_words("experiments.train", ["--config.train.stps=2"], defined_flags("experiments.train"))
    with pytest.raises(AssertionError, match="no flag"):
        check_words("experiments.train", ["--sampler=heun"], defined_flags("experiments.train"))


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_flags_in_the_text_exist(path):
    modules = [f"experiments.{file.stem}" for file in (ROOT / "experiments").glob("*.py")]
    flags = {"help": "boolean"} | {name: kind for module in modules for name, kind in defined_flags(module).items()}
    for words in re.findall(r"`(--[^`\n]+)`", path.read_text()):
        check_words(path.name, shlex.split(words), flags)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_paths_exist(path):
    text = path.read_text()
    named = re.findall(r"(?<![\w./-])(?:diffusion_jax|experiments|configs|tests|docs|benchmarks)/[\w./-]*", text)
    for name in {name.rstrip(".") for name in named}:
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", text):
        assert (path.parent / "".join(target)).exists(), target


def names_of(node: ast.stmt) -> set[str]:
    """The names that a statement defines: a class, a function or variables."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {getattr(node, "name", None), *(target.id for target in targets if isinstance(target, ast.Name))} - {None}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_symbols_exist(path):
    """Every symbol that a page names in the form `file.py`: `Class.method`, `function` exists."""
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", path.read_text()):
        tree = ast.parse((ROOT / file).read_text())
        for name in re.findall(r"`([\w.]+)`", names):
            body: list[ast.stmt] = tree.body
            for part in name.split("."):
                found = [node for node in body if part in names_of(node)]
                assert found, f"{file} has no {name}"
                body = getattr(found[0], "body", [])


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.M):
        assert target in targets, target


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_what_is_not_there_yet_is_not_there(path):
    """A module named outside a command exists, or its paragraph says that it is not there yet."""
    for paragraph in path.read_text().split("\n\n"):
        for module in re.findall(r"`experiments\.(\w+)`", paragraph):
            there = (ROOT / "experiments" / f"{module}.py").is_file()
            promised = "Not there yet" in paragraph
            assert there != promised, f"experiments.{module}: bring {path.name} up to date"


def test_registries_of_this_process_are_as_they_were():
    assert not set(EXAMPLES) & {*SAMPLERS, *METRICS}
    assert "stripes" not in datasets
