"""Ablations: cells, shared trainings, sound statistics, and resuming after a kill."""

import csv
import importlib.util
import itertools
import json
import math
import types

import numpy as np
import PIL.Image
import pytest
import scipy.stats

from diffusion_jax.data import builders
from diffusion_jax.errors import UserError
from experiments.building.wiring import Experiment
from experiments.evaluating.judging import available
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.differences import standing_in
from experiments.sweeps.figures import drawn_over
from experiments.sweeps.numbers import p_text
from experiments.sweeps.page import write_page
from experiments.sweeps.report import write_reports
from experiments.sweeps.statistics import Comparison, Estimate, best, compare, holm, pareto_front
from tests.processes import ROOT

FILE = '''
"""Two samplers and two rates."""

from configs.digits_unet import get_config as digits

SEEDS = (0, 1)
BASELINE = {"rate": "low", "sampler": "euler"}


def get_config():
    config = digits()
    config.evaluation.metrics = ("class_accuracy",)
    return config


def sweep_rate():
    yield "low", {"optimizer.learning_rate": 1e-3}
    yield "high", {"optimizer.learning_rate": 2e-3}


def sweep_sampler():
    yield "euler", {"sampling.sampler": {"name": "euler"}}
    yield "heun", {"sampling.sampler": {"name": "heun"}, "sampling.steps": 4}
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ablation.py"
    path.write_text(FILE)
    return path


def test_cells_are_the_cross_product_with_the_seeds(file):
    ablation = Ablation.read(file)
    assert ablation.title == "Two samplers and two rates."
    assert ablation.axes == {"rate": ("low", "high"), "sampler": ("euler", "heun")}
    assert ablation.metric == "class_accuracy"
    assert len(ablation.cells) == 8
    assert len({cell.name for cell in ablation.cells}) == 8
    cell = ablation.cells[-1]
    assert (cell.label, cell.seed) == ("rate high, sampler heun", 1)
    assert (cell.config.optimizer.learning_rate, cell.config.sampling.steps, cell.config.seed) == (2e-3, 4, 1)
    assert cell.config.sampling.sampler.to_dict() == {"name": "heun"}


def test_cells_that_differ_in_sampling_alone_share_a_training(file):
    trainings = Ablation.read(file).trainings()
    assert len(trainings) == 4
    for cells in trainings.values():
        assert {cell.values["sampler"] for cell in cells} == {"euler", "heun"}
        assert len({(cell.values["rate"], cell.seed) for cell in cells}) == 1
        assert cells[0].training_config == cells[1].training_config


def test_a_filter_leaves_cells_out_but_never_the_baseline(file):
    file.write_text(FILE + "\n\ndef keep(cell):\n    return cell['rate'] == 'high'\n")
    labels = [cell.label for cell in Ablation.read(file).cells if cell.seed == 0]
    assert labels == ["rate low, sampler euler", "rate high, sampler euler", "rate high, sampler heun"]


def test_what_every_cell_starts_from_can_be_set(file):
    plain, moved = Ablation.read(file), Ablation.read(file, ["data.data_dir=/somewhere"])
    assert set(plain.trainings()) == set(moved.trainings())
    other = Ablation.read(file, ["train.steps=7", "data.data_dir=/somewhere"])
    assert {cell.config.train.steps for cell in other.cells} == {7}
    assert other.cells[0].config.data.data_dir == "/somewhere"
    assert set(plain.trainings()).isdisjoint(other.trainings())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optimizer.learning_rate", "optimizer.learnin_rate", "no field 'optimizer.learnin_rate'"),
        ('"euler"}\n', '"eular"}\n', "BASELINE.*must name one value of each axis"),
        ("sweep_", "swoop_", "at least one sweep_<axis>"),
        ("1e-3", "'fast'", "wrong type for optimizer.learning_rate"),
        ('("class_accuracy",)', "()", "evaluation.metrics is empty"),
        ("SEEDS", "METRIC = 'fid'\nSEEDS", "METRIC of .* is 'fid'"),
        ("from configs", "from konfigs", "cannot read"),
    ],
)
def test_a_file_that_is_no_ablation_is_refused(file, old, new, message):
    file.write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=message):
        Ablation.read(file)


def test_a_training_is_sampled_as_its_own_axis_says_and_not_as_the_others_do(file):
    """A training's own samples use the sampling settings of its axis value, not those of other axes."""
    old = 'yield "high", {"optimizer.learning_rate": 2e-3}'
    new = 'yield "high", {"optimizer.learning_rate": 2e-3, "sampling.steps": 7}'
    file.write_text(FILE.replace(old, new))
    trainings = {
        cells[0].values["rate"]: cells[0].training_config.sampling for cells in Ablation.read(file).trainings().values()
    }
    assert (trainings["low"].steps, trainings["high"].steps) == (18, 7)
    assert {sampling.sampler.name for sampling in trainings.values()} == {"heun"}  # the sampler of the file


SLOW = {"scenes_captions", "scenes_attention", "scenes_text_encoder", "prediction_schedule_weighting"}
SLOW |= {"objectives_nfe_fashion", "few_step_text"}
FONTS = {"letters": ["data.options.fonts=bundled"]}  # the other fonts must be downloaded


def shipped():
    """The shipped ablation files; those with long checks are slow, those that read words need an OCR engine."""
    without = pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="rapidocr is not installed")
    for path in sorted((ROOT / "configs" / "ablations").glob("*.py")):
        marks = [pytest.mark.slow] * (path.stem in SLOW) + [without] * (path.stem in FONTS)
        yield pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", shipped())
def test_shipped_ablations_can_be_run(path, data_dir, idx_dir):
    """Everything that a cell names exists and fits together."""
    builders.prepare("fashion_mnist", str(data_dir), idx_dir=str(idx_dir), progress=False)
    ablation = Ablation.read(path, [f"data.data_dir={data_dir}", *FONTS.get(path.stem, [])])
    assert len(ablation.seeds) >= 3
    for cells in ablation.trainings().values():
        Experiment(standing_in(cells[0].training_config, ablation.base)).check()
        for cell in cells:
            experiment = Experiment(standing_in(cell.config, ablation.base))
            _ = experiment.sampler(), experiment.grid()
            available(experiment, tuple(cell.config.evaluation.metrics))
            assert cell.config.sampling.ema in ("", *experiment.ema.names) or experiment.ema.widths


def test_cells_are_listed_for_a_reader_that_stops_reading(command, tmp_path, file):
    """A reader that stops early, such as `head`, causes no traceback."""
    process = command.start("ablate", f"--config={file}", f"--workdir={tmp_path}/ablation", "--list")
    process.stdout.close()
    assert process.wait(timeout=120) == 1
    assert process.stderr.read() == ""


def test_a_seed_that_the_ablation_does_not_have(command, tmp_path, file):
    _, err = command.run("ablate", f"--config={file}", f"--workdir={tmp_path}/a", "--seeds=0,7", "--list", code=2)
    assert "has the seeds 0, 1" in err


def test_the_interval_is_students():
    values = [1.0, 2.0, 4.0]
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    found = Estimate.of(values)
    assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))
    assert math.isnan(Estimate.of([3.0]).half)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).standard_normal((2000, 3))
    found = [Estimate.of(row) for row in draws]
    assert np.mean([abs(one.mean) <= one.half for one in found]) == pytest.approx(0.95, abs=0.015)


def test_seeds_are_compared_in_pairs():
    """The paired test finds a small constant difference between cells, although seeds differ much more."""
    baseline = {0: 1.0, 1: 5.0, 2: 9.0, 7: 4.0}
    cell = {0: 1.1, 1: 5.12, 2: 9.09}
    found = compare(cell, baseline)
    assert found.difference.mean == pytest.approx(0.31 / 3)
    assert found.p == pytest.approx(scipy.stats.ttest_rel([1.1, 5.12, 9.09], [1, 5, 9]).pvalue)
    assert found.p < 0.02
    assert compare({3: 1.0}, baseline) is None
    assert math.isnan(compare(baseline, baseline).p)


def test_holm():
    """The corrected p-values by hand: 0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06, 0.5; cells without a p-value do not
    count."""
    plain = [Comparison(Estimate(0, 0, 3), p) for p in (0.03, 0.01, math.nan, 0.5, 0.02)]
    corrected = [one.corrected for one in holm(plain)]
    assert corrected[:2] == [pytest.approx(0.06), pytest.approx(0.04)]
    assert math.isnan(corrected[2])
    assert corrected[3:] == [pytest.approx(0.5), pytest.approx(0.06)]


def test_pareto_front():
    costs, values = [1, 2, 2, 3, 4], [9.0, 5.0, 6.0, 5.0, 1.0]
    assert pareto_front(costs, values, lower=True) == [True, True, False, False, True]
    assert pareto_front(costs, [-v for v in values], lower=False) == [True, True, False, False, True]


def test_a_point_that_is_not_known_is_not_on_the_front():
    values = [math.nan, 5.0, math.inf, 4.0, 3.0]
    assert pareto_front([1, 2, 2, 3, math.nan], values) == [False, True, False, True, False]
    assert pareto_front([1, 2], [math.nan, -math.inf], lower=False) == [False, False]
    assert best([math.inf, math.nan, 2.0, 1.0]) == 3
    assert best([math.nan]) is None


def test_values_that_are_not_finite_do_not_count():
    assert Estimate.of([1.0, math.nan, 3.0, math.inf]).mean == 2.0
    assert Estimate.of([math.nan]).count == 0
    assert math.isnan(Estimate.of([]).mean)
    found = compare({0: 1.0, 1: math.nan, 2: 3.0, 3: 4.0}, {0: 0.5, 1: 1.0, 2: 1.0, 3: math.inf})
    assert (found.difference.mean, found.difference.count) == (1.25, 2)
    assert compare({0: math.nan}, {0: 1.0}) is None


def test_differences_that_are_equal_but_for_rounding_are_not_tested():
    cell, baseline = {0: 0.3, 1: 0.7, 2: 1.1}, {0: 0.1, 1: 0.5, 2: 0.9}
    found = compare(cell, baseline)
    assert found.difference.mean == pytest.approx(0.2)
    assert math.isnan(found.p)
    assert math.isnan(found.difference.half)
    assert p_text(found) == "n/a"


def test_page_has_the_numbers_the_chart_and_the_samples(file, tmp_path):
    """The page of made-up cells, one of which is not done yet."""
    ablation, home = Ablation.read(file), tmp_path / "out"
    (home / "cells").mkdir(parents=True)
    accuracy = {("low", "euler"): (0.5, 0.7), ("low", "heun"): (0.8, 0.9), ("high", "euler"): (0.6, 0.9)}
    accuracy["high", "heun"] = (0.75, None)
    for cell in ablation.cells:
        value = accuracy[cell.values["rate"], cell.values["sampler"]][cell.seed]
        if value is not None:
            evaluations = 18 if cell.values["sampler"] == "euler" else 7
            settings = {"network_evaluations": evaluations, "num_samples": 20}
            results = {"class_accuracy": {"accuracy": value}, "settings": settings}
            (home / "cells" / f"{cell.name}.json").write_text(json.dumps({"results": results}))
            PIL.Image.new("L", (100, 40), 17).save(home / "cells" / f"{cell.name}.png")
    for training in ablation.trainings():
        (home / "trainings" / training).mkdir(parents=True)
        for name, row in (("metrics", {"step": 1, "loss": 1.0}), ("timings", {"step": 1, "images_per_second": 9.0})):
            (home / "trainings" / training / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    write_reports(ablation, home)
    page = write_page(ablation, home, tmp_path / "docs" / "two.md").read_text()
    assert "7 of 8 cells, seeds 0, 1;" in page
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.6, scale=scipy.stats.sem([0.5, 0.7]))
    assert f"| low | euler | 18 | 0.6 ± {(high - low) / 2:.2g} | baseline |  |" in page
    difference = scipy.stats.t.interval(0.95, 1, loc=0.25, scale=scipy.stats.sem([0.3, 0.2]))
    assert f"| +0.25 ± {difference[1] - 0.25:.2g} |" in page
    assert "| high | heun | 7 | 0.75 | +0.25 | – |" in page  # a single seed gives no interval
    kept = tmp_path / "docs" / "two"
    assert json.loads((kept / "results.json").read_text()) == json.loads((home / "results.json").read_text())
    for name in ("chart.png", "samples.png"):
        assert f"(two/{name})" in page
        assert np.asarray(PIL.Image.open(kept / name)).std() > 0
    for path in (home / "cells").glob("*seed_1.json"):
        path.unlink()
    page = write_page(ablation, home, tmp_path / "docs" / "one.md").read_text()
    assert "seed 0 alone" in page
    assert "±" not in page
    assert PIL.Image.open(kept / "samples.png").height == 4 * 10  # one row per group


@pytest.mark.parametrize(
    ("axes", "over"),
    [
        ({"sampler": ("euler", "heun"), "steps": ("4", "8")}, "evaluations"),
        ({"scale": ("1", "2"), "interval": ("all", "middle")}, "first axis"),  # which is not a quantity
        ({"steps": ("4", "8")}, "cells"),
    ],
)
def test_lines_are_drawn_over_what_is_an_amount(axes, over):
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    groups = [types.SimpleNamespace(values=values, evaluations=10 + i) for i, values in enumerate(cells)]
    assert drawn_over(axes, groups) == over


@pytest.mark.slow
def test_a_killed_ablation_goes_on_and_repeats_nothing(command, tmp_path, file):
    """An ablation killed in its second training ends its child processes, and repeats no finished cell later."""
    file.write_text(FILE.replace('    yield "high", {"optimizer.learning_rate": 2e-3}\n', ""))
    tiny = [argument.removeprefix("--config.") for argument in command.train_arguments("", "")[2:-1]]
    tiny = [one for one in tiny if not one.startswith("sampling.sampler")]
    assert all("=" in one for one in tiny)
    workdir = tmp_path / "ablation"
    arguments = (f"--config={file}", f"--workdir={workdir}", *(f"--set={one}" for one in tiny))
    process = command.start("ablate", *arguments)
    second = list(Ablation.read(file, tiny).trainings())[1]
    checkpoint = workdir / "trainings" / second / "checkpoints" / "20"
    assert command.kill_when(process, checkpoint.exists)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in (workdir / "cells").glob("*.json")}
    assert len(done) == 2
    out, _ = command.run("ablate", *arguments, "--list")
    assert [line.split()[0] for line in out.splitlines()] == ["done", "open", "done", "open"]
    out, _ = command.run("ablate", *arguments)
    assert f"resuming {workdir}/trainings/{second} at step" in out
    assert {path: path.stat().st_mtime_ns for path in done} == done
    results = json.loads((workdir / "results.json").read_text())
    assert (results["cells"], results["cells_done"]) == (4, 4)
    assert [row["network_evaluations"] for row in results["rows"]] == [3, 7]
    assert set(results["rows"][1]["against_baseline"]) >= {"p_paired_t", "p_holm", "difference"}
    with open(workdir / "results.csv") as table:
        found = list(csv.DictReader(table))
    assert [row["seed"] for row in found] == ["0", "1", "0", "1"]
    by_seed = results["rows"][0]["numbers"]["class_accuracy/accuracy"]["by_seed"]
    assert [float(row["class_accuracy/accuracy"]) for row in found[:2]] == [by_seed["0"], by_seed["1"]]
    page = (workdir / "report.html").read_text()
    for part in ("Quality against cost", "Learning curves", "What differs", "p (Holm)", "data:image/png"):
        assert part in page
    assert page.count("<h3>") == 2
    assert r"\toprule" in (workdir / "results.tex").read_text()
    # A cell equals the evaluation by hand: the run of its training, evaluated with its sampler.
    by_hand = tmp_path / "by_hand.json"
    command.run("evaluate", f"--workdir={workdir}/trainings/{second}", f"--out={by_hand}", "--sampler=heun",
                "--steps=4", "--metrics=class_accuracy")  # fmt: skip
    cell = json.loads(next(path for path in (workdir / "cells").glob("*heun-seed_1.json")).read_text())
    assert cell["results"]["class_accuracy"] == json.loads(by_hand.read_text())["class_accuracy"]
    file.write_text(file.read_text().replace('"sampling.steps": 4', '"sampling.steps": 5'))
    assert "was made with another config" in command.fails("ablate", *arguments)
