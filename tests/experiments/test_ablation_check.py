"""Cells have distinct names; equal cells and files that are not ablations are refused."""

import itertools
import re

import pytest

from diffusion_jax.errors import UserError
from experiments.sweeps.ablation import Ablation, name_of_values
from experiments.sweeps.differences import check_cells_sample, standing_in
from tests.experiments.test_ablation import FILE


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ablation.py"
    path.write_text(FILE)
    return path


def values_of(*names):
    return [{"rate": name} for name in names]


@pytest.mark.parametrize(
    "values",
    [
        values_of("1e+0", "1e-0", "1e0", "1E0", "1e 0", "1e_0"),
        values_of("-1", "+1", "1", "_1", "1.", "1"[:0] + "1/"),
        values_of("a", "A", "ä", "Ä", "å", "a\u0308"),
        values_of("x" * 300, "x" * 301, "x" * 299 + "y", "x"),
        values_of(
            "../up", "..", ".", "/root", "a/b", "a\\b", "con", "nul", "*", "?", "a:b", "|", "trailing ", "trailing."
        ),
        [{"a": a, "b": b} for a, b in (("x-b_y", "z"), ("x", "y-b_z"), ("x", "y"), ("x-b", "y"), ("x_b", "y"))],
    ],
)
def test_names_of_cells_are_injective_and_valid_everywhere(values):
    names = [name_of_values(one) for one in values]
    assert len({name.casefold() for name in names}) == len(values)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name), name
        assert len(name) < 130
        assert name == name_of_values(values[names.index(name)])


def test_names_of_plain_values_are_read_as_they_are():
    assert name_of_values({"sampler": "dpmpp_2m", "steps": "16"}) == "sampler_dpmpp_2m-steps_16"
    assert name_of_values({"rate": "-1"}).startswith("rate__1-")


def with_rates(*lines):
    old = FILE[FILE.index('    yield "low"') : FILE.index("\n\ndef sweep_sampler")]
    return FILE.replace(old, "\n".join(f"    yield {line}" for line in lines) + "\n")


def test_values_that_differ_in_signs_have_files_of_their_own(file):
    text = with_rates('"-1", {"train.conditioning_dropout": 0.1}', '"+1", {"train.conditioning_dropout": 0.2}')
    file.write_text(text.replace('"low"', '"-1"'))
    ablation = Ablation.read(file)
    assert len({cell.name for cell in ablation.cells}) == len(ablation.cells) == 8


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"low", {}', '"1e+0", {"optimizer.learning_rate": 1e+0}', '"1e-0", {"optimizer.learning_rate": 1e-0}'],
         r"same config: axis rate \(1e\+0, 1e-0\) changes nothing"),
        (['"low", {}', '"same", {}'], r"same config: axis rate \(low, same\) changes nothing"),
        (['"low", {}', '"same", {"objective": {"name": "denoising"}}'], "train and sample the same"),
        (['"low", {}', '"log", {"log.every": 7}'], "sets log, on which no number depends"),
        (['"low", {}', '"bins", {"evaluation.bins": 7}'], "sets evaluation, on which no number depends"),
        (['"low", {}', '"few", {"evaluation.likelihood_images": 7}'], "on which no number depends"),
        (['"low", {}', '"weights", {"evaluation.inception": "weights.npz"}'], "on which no number depends"),
        (['"low", {}', '"low", {"train.steps": 3}'], "yields 'low' twice"),
        (['"low"'], "must yield"),
        (['"low", 3'], "must yield"),
        (['"low", {3: 4}'], "must name fields"),
        (['"", {}'], "cannot be the name of a value"),
    ],
)  # fmt: skip
def test_axes_that_change_nothing_are_refused(file, lines, message):
    file.write_text(with_rates(*lines))
    with pytest.raises(UserError, match=message) as caught:
        Ablation.read(file)
    assert "\n" not in str(caught.value)


_UNREAD = """
from configs.digits_unet import get_config as digits

def get_config():
    config = digits("objective={objective}")
    config.evaluation.metrics = ("class_accuracy",)
    return config

def sweep_axis():
    yield "as it is", {{}}
    yield "another", {{"{group}": {value}}}
"""
_OTHERS = {
    "time_sampler": {"name": "uniform", "t_min": 0.3},
    "process.schedule": {"name": "ddpm_linear"},
    "process.prediction": {"name": "x0"},
    "process.time_input": {"name": "t"},
    "sampling.grid": {"name": "quadratic"},
}


@pytest.mark.parametrize(
    ("objective", "group"),
    [
        *itertools.product(("consistency_training", "ict", "progressive_distillation"), ("time_sampler",)),
        *itertools.product(("d3pm", "mdlm", "sedd", "discrete_flow"), ("time_sampler", "sampling.grid")),
    ],
)
def test_an_axis_over_what_the_objective_does_not_read_is_refused(file, objective, group):
    file.write_text(_UNREAD.format(objective=objective, group=group, value=_OTHERS[group]))
    with pytest.raises(UserError, match=rf"sets {group}, which objective .* does not read"):
        Ablation.read(file)


@pytest.mark.parametrize("group", ["process.schedule", "schedule", "prediction", "time_input"])
def test_an_axis_over_what_another_process_has_is_refused(file, group):
    """An axis over a field of another process is refused, also under the names of earlier versions."""
    value = _OTHERS[group if group in _OTHERS else f"process.{group}"]
    file.write_text(_UNREAD.format(objective="mdlm", group=group, value=value))
    with pytest.raises(UserError, match=r"the config has no field 'process\.\w+'; known: .*process\.num_tokens"):
        Ablation.read(file)


def test_an_axis_over_what_the_objective_reads_is_an_ablation(file):
    for group, value in _OTHERS.items():
        file.write_text(_UNREAD.format(objective="denoising", group=group, value=value))
        assert len(Ablation.read(file).cells) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(0, 1)", "()", "SEEDS"), ("(0, 1)", "(0, 0)", "SEEDS"), ("(0, 1)", "5", "SEEDS"),
        ("(0, 1)", "(-1,)", "SEEDS"), ("(0, 1)", "'01'", "SEEDS"), ("(0, 1)", "(True,)", "SEEDS"),
        ("(0, 1)", "(0.5,)", "SEEDS"),
        ("    return config", "    return None", r"get_config\(\) returned NoneType, not an .*ConfigDict"),
        ("    return config", "    raise SystemExit(3)", r"exits \(SystemExit: 3\)"),
        ("    return config", "    return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("SEEDS", "import sys; sys.exit(0)\nSEEDS", r"exits \(SystemExit: 0\)"),
        ("BASELINE = {", "BASELINE = 3 or {", "BASELINE"),
        ('    yield "low"', '    raise OSError("no")\n    yield "low"', r"sweep_rate\(\) raised OSError: no"),
        ("def get_config", "def keep(cell):\n    return cell['no']\n\n\ndef get_config", r"keep\(cell\) raised Key"),
    ],
)  # fmt: skip
def test_whatever_a_file_does_ends_in_one_line(file, old, new, message):
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        Ablation.read(file)
    assert "\n" not in str(caught.value)


_WITH_BASE = """
from configs.digits_dit import get_config as digits

def base():
    return digits()

def get_config():
    config = digits()
    with config.unlocked():
        del config.model, config.process
        config.init.folder = "base"
        config.adapter = {"name": "lora", "rank": 4}
    return config

def sweep_rank():
    yield "4", {}
    yield "8", {"adapter": {"name": "lora", "rank": OTHER}}
"""


def test_the_base_of_an_ablation_is_a_config_of_its_own(file):
    """The base config can be set separately, and its folder does not change the identity of a training."""
    file.write_text(_WITH_BASE.replace("OTHER", "8"))
    ablation = Ablation.read(file, ["base.train.steps=7", "train.steps=3"])
    assert ablation.base.train.steps == 7
    assert {cell.config.train.steps for cell in ablation.cells} == {3}
    assert len(ablation.trainings()) == 2
    cell = ablation.cells[0]
    before = cell.training
    cell.base.init.folder = "elsewhere"
    assert cell.training == before
    whole = standing_in(cell.config, ablation.base)
    assert "adapter" not in whole
    assert whole.model == ablation.base.model


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("OTHER", "4", r"have the same config|train and sample the same: axis rank \(4, 8\)"),
        ("def base", "def basis", "there is no model in .*base"),
        ('config.init.folder = "base"', "pass", r"has base\(\), but the cells start from no model: set init\.folder"),
    ],
)
def test_a_base_that_nothing_starts_from_or_cells_that_are_alike(file, old, new, message):
    text = _WITH_BASE.replace(old, new).replace("OTHER", "8")
    if "pass" in new:
        text = text.replace("        del config.model, config.process\n", "").replace(
            '        config.adapter = {"name": "lora", "rank": 4}\n', ""
        )
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        Ablation.read(file)


def test_a_field_of_a_base_that_there_is_not(file):
    with pytest.raises(UserError, match=r"trains no base before its cells: it has no function base\(\)"):
        Ablation.read(file, ["base.train.steps=7"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"b", {"train.batch_size": 8, "seed": 5}', "value 'b' sets seed; the seeds of the cells are SEEDS"),
        ('"b", {"evaluation.metrics": ("proxy_fd",)}', "sets evaluation.metrics; all cells are compared by the"),
        ('"b", {"optimizer.learning_rate": float("nan")}', r"cell 'rate b, .*learning_rate .*nan"),
        ('"b", {"train.batch_size": True}', r"cell 'rate b, .* cannot run: train\.batch_size"),
        ('"b", {"evaluation.num_samples": -3}', r"cell 'rate b, .*evaluation\.num_samples"),
        ('"b", {"sampling.steps": 0}', r"cell 'rate b, .*sampling\.steps"),
        ('"low ", {"train.batch_size": 8}', r"the names 'low' and 'low ' look alike"),
    ],
)
def test_values_that_no_cell_can_have_are_refused_before_any_is_trained(file, line, message):
    file.write_text(with_rates('"low", {}', line))
    with pytest.raises(UserError, match=message) as caught:
        Ablation.read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('{"sampling.grid": {"name": "nope"}}', "unknown .*nope"),
        ('{"sampling.grid": {"name": "karras", "rho": -1.0}}', "rho"),
        ('{"sampling.ema": "half_life_7"}', "unknown average of the parameters 'half_life_7'"),
    ],
)
def test_sampling_that_does_not_fit_is_refused_before_any_is_trained(file, fields, message):
    file.write_text(with_rates('"low", {}', f'"b", {fields}'))
    ablation = Ablation.read(file)
    with pytest.raises(UserError, match=rf"cell 'rate b, sampler euler' cannot run: .*{message}"):
        check_cells_sample(ablation.path, ablation.cells, ablation.base)


def test_names_that_are_written_alike_are_one_name(file):
    file.write_text(with_rates('"low", {}', '"\\u00e4", {"train.steps": 7}', '"a\\u0308", {"train.steps": 8}'))
    with pytest.raises(UserError, match=r"the names '\\xe4' and 'a\\u0308' look alike"):
        Ablation.read(file)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed=5", "--set=seed=5: the seeds of the cells are SEEDS"),
        ("optimizer.learning_rate=0.5", "changes nothing: every value of axis rate of .* sets it"),
        ("sampling.sampler.name=ddim", "changes nothing: every value of axis sampler"),
        ("checkpoint.directory=/somewhere", "would be the directory of every training"),
        ("evaluation.metrics=('class_accuracy', 'nope')", "nope"),
        ("train.steps=-3", r"train\.steps"),
    ],
)
def test_assignments_that_change_nothing_or_fit_no_cell_are_refused(file, assignment, message):
    with pytest.raises(UserError, match=message):
        Ablation.read(file, [assignment])


def test_a_field_that_is_assigned_twice_is_refused(file):
    with pytest.raises(UserError, match=r"--set=train\.steps=\.\.\. is given 2 times: give it once"):
        Ablation.read(file, ["train.steps=7", "train.conditioning_dropout=0.2", "train.steps=8"])


def test_a_docstring_that_is_no_text(file):
    file.write_text(FILE + "\n__doc__ = 3\n")
    assert Ablation.read(file).title == "3"
