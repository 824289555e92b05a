"""One schema gives every field a type, a default, a domain and a meaning, shown in docs/config.md and by --help."""

import dataclasses
import json
import re

import pytest
from ml_collections import ConfigDict

from configs.base import runner
from diffusion_jax import terms
from diffusion_jax.data import Pipeline
from diffusion_jax.domains import Bounds, check, domain_text, type_text
from diffusion_jax.errors import UserError
from experiments.building.parts import KINDS, documented, fields_of
from experiments.ground import workdir
from experiments.ground.config_files import flatten
from experiments.ground.fields import ABSENT, FIELDS, PARTS, REQUIRED, check_fields, complete
from experiments.reports import fields_page
from tests.processes import ROOT

PROCESS = {"name": "gaussian", "schedule": {"name": "edm"}, "prediction": {"name": "edm"}, "time_input": {"name": "t"}}
ARGUMENTS = [(kind, name, field) for kind in KINDS for name in kind.registry for field in fields_of(kind, name)]


def test_the_base_has_every_field_that_has_a_default_and_no_other():
    there = set(flatten(runner()))
    stated = {name for name, field in FIELDS.items() if field.default is not REQUIRED}
    of_parts = {
        f"{name}.{inner}" if inner else name
        for name, (default, _) in PARTS.items()
        if default not in (REQUIRED, ABSENT) and name != "optimizer"
        for inner in (default or [""])
    }
    assert there == stated | of_parts


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_a_meaning_and_a_default_in_its_own_domain(name):
    kind, default, bounds, meaning = FIELDS[name]
    assert meaning[0].islower()
    assert not meaning.endswith(".")
    if default is not REQUIRED:
        check(name, default, kind, bounds)


def test_defaults_of_the_data_are_those_of_the_pipeline():
    there = {field.name: field.default for field in dataclasses.fields(Pipeline)}
    ours = {name.removeprefix("data."): field.default for name, field in FIELDS.items() if name.startswith("data.")}
    for name in set(there) & set(ours) - {"dataset", "data_dir"}:  # None is written as "" in a config
        assert ours[name] == there[name], name
    assert {"name": there["augmentation"]} == PARTS["data.augmentation"][0]


@pytest.mark.parametrize(("kind", "name", "field"), ARGUMENTS, ids=lambda value: getattr(value, "group", value))
def test_an_argument_of_a_part_has_a_type_and_a_meaning(kind, name, field):
    """Every field of a part has a type and a meaning, from "Attributes:" in its docstring or from terms.py."""
    found = fields_of(kind, name)[field]
    why = f"say in the docstring of {kind.registry.kind} {name!r} what {field} means"
    assert len(found.meaning) > 4, why
    assert not found.meaning.startswith("of "), why
    assert type_text(found.kind)
    if found.default is not REQUIRED:
        check(f"{name}.{field}", found.default, found.kind, found.bounds)


def test_every_term_is_needed():
    used = set()
    for kind, name, field in ARGUMENTS:
        if field not in documented(kind.registry[name]):
            own = f"{kind.registry.kind}.{field}"
            used.add(own if own in terms.TERMS else field)
    assert set(terms.TERMS) == used


def test_the_page_is_that_of_the_code():
    assert fields_page.PAGE.read_text() == fields_page.page(), "run `make docs`"
    assert fields_page.FILE.read_text() == fields_page.as_json(), "run `make docs`"


def test_the_page_has_every_field():
    page = fields_page.PAGE.read_text()
    for name in (*FIELDS, *PARTS):
        assert f"| `{name}` |" in page
    for kind, name, field in ARGUMENTS:
        section = page.partition(f"### {kind.group}: {kind.registry.kind}\n")[2].partition("\n### ")[0]
        part = section.partition(f"**{name}**:")[2].partition("\n**")[0]
        assert f"| `{field}` |" in part, (kind.group, name, field)


@pytest.mark.parametrize(
    ("kind", "bounds", "text"),
    [
        (float, Bounds(low=0, high=1, below=True), "float in [0, 1)"),
        (int | None, Bounds(low=1, high=2**20), "int | None in [1, 1,048,576]"),
        (tuple[float, ...], Bounds(low=0, infinite=True), "tuple[float, ...] in [0, inf]"),
        (float, Bounds(low=0, above=True), "float in (0, inf)"),
        (float, Bounds(), "float in "),
        (bool, Bounds(low=0), "bool in "),
        (str | None, Bounds(low=0), "str | None in "),
    ],
)
def test_types_and_domains_as_texts(kind, bounds, text):
    assert f"{type_text(kind)} in {domain_text(kind, bounds)}" == text


def test_help_says_what_a_field_means(command):
    text, _ = command.run("train", "--config=configs/digits_dit.py", "--help")
    text = re.sub(r"\s+", " ", text)
    assert "--config.train.steps=1500 steps of the optimizer (int in [1, 1,000,000,000]); required" in text
    assert "--config.log.every=50 steps between logged rows (int in [1, 1,000,000,000]); by default 100" in text
    assert "--config.model.depth=4 transformer blocks (int | None in [1, 10,000]); by default None" in text
    assert "--config.objective.weighting.gamma=5.0 SNR at which the weight is clipped" in text
    assert re.search(r"--config\.sampling\.sampler\.name='dpmpp_2m' sampler, one of .*\bheun\b", text)


def test_a_config_of_an_earlier_version_is_read_with_the_defaults(tmp_path):
    """A stored config without newer fields equals the current config, with the same hash."""
    config = runner()
    config.update(
        data=dict(dataset="digits"),
        model=dict(name="mlp"),
        process=PROCESS,
        objective=dict(name="denoising"),
        train=dict(steps=3),
        optimizer=dict(name="adam", learning_rate=1e-3),
        sampling=dict(sampler=dict(name="heun"), steps=3),
    )
    before = json.loads(config.to_json_best_effort())
    for group, field in (("data", "prefetch"), ("train", "trained"), ("sampling", "grid")):
        del before[group][field]
    del before["teacher"], before["imports"], before["process"]
    before |= {name: value for name, value in PROCESS.items() if name != "name"}
    (tmp_path / "config.json").write_text(json.dumps(before))
    read = workdir.read_config(tmp_path)
    check_fields(read)
    assert workdir.to_json(read) == workdir.to_json(config)
    assert workdir.digest(ConfigDict(before)) == workdir.digest(config)
    workdir.require_same_config(before, config, "the run")
    config.data.prefetch = 5
    with pytest.raises(UserError, match=r"data\.prefetch: 4 -> 5"):
        workdir.require_same_config(before, config, "the run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.train.update(stepz=3), "did you mean 'train.steps'"),
        (lambda config: config.update(trian=dict(steps=3)), "did you mean 'train'"),
        (
            lambda config: config.train.__delitem__("steps"),
            "lacks train.steps, which has no default: steps of the optimizer",
        ),
        (lambda config: config.__delitem__("objective"), "lacks objective, which has no default: loss"),
        (lambda config: config.sampling.__delitem__("sampler"), "lacks sampling.sampler"),
    ],
)
def test_a_config_that_does_not_say_enough_or_too_much(change, message):
    config = runner()
    config.update(
        data=dict(dataset="digits"), model=dict(name="mlp"), objective=dict(name="denoising"), process=PROCESS
    )
    config.update(train=dict(steps=3), optimizer=dict(name="adam", learning_rate=1e-3))
    config.update(sampling=dict(sampler=dict(name="heun"), steps=3))
    complete(config)
    with config.unlocked():
        _ = change(config)
    with pytest.raises(UserError, match=re.escape(message)):
        complete(config)


def test_defaults_stand_in_the_schema_alone():
    """No code outside the schema defines a default for a field of the runner."""
    groups = "|".join(sorted({name.partition(".")[0] for name in FIELDS if "." in name}))
    guess = re.compile(rf"""\b(config|spec|{groups})\.get\(["']\w+["'], """)
    for room in ("experiments", "diffusion_jax", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if "weights" not in path.parts:  # these read configs of other libraries
                assert not guess.search(path.read_text()), path


def test_shipped_configs_start_from_the_base():
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text()
        if "def get_config(" in text and path.stem != "from_json":
            assert "runner()" in text, path.name
    assert len((ROOT / "configs" / "digits_unet.py").read_text().splitlines()) <= 40, "it fits a screen"
