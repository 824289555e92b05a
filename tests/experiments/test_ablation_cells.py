"""Reading finished cells: missing numbers, damaged files, and the resulting tables."""

import json
import math
import re

import pytest

from diffusion_jax.errors import UserError
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import (
    best_group,
    column_title,
    damage,
    front,
    identity,
    is_done,
    number_columns,
    read,
    result_file,
)
from experiments.sweeps.page import write_page
from experiments.sweeps.report import write_reports
from tests.experiments.test_ablation import FILE


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ablation.py"
    path.write_text(FILE)
    return path


def write_cells(home, ablation, results):
    """Write the files of evaluated cells with the numbers of `results(cell)`."""
    (home / "cells").mkdir(parents=True)
    for cell in ablation.cells:
        found = {**results(cell), "settings": {"network_evaluations": 18, "num_samples": 20}}
        result_file(home, cell).write_text(json.dumps({**identity(cell), "results": found}))
        (home / "trainings" / cell.training).mkdir(parents=True, exist_ok=True)
        for name in ("metrics", "timings"):
            (home / "trainings" / cell.training / f"{name}.jsonl").write_text("")


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "much", True])
def test_a_number_that_is_missing_is_never_best_and_the_files_are_valid(file, tmp_path, bad):
    """A missing number in the first row is never the best, and all written files stay valid."""
    ablation, home = Ablation.read(file), tmp_path / "out"

    def results(cell):
        value = bad if cell.values == {"rate": "low", "sampler": "euler"} else 0.5 + 0.01 * cell.seed
        return {"class_accuracy": {"accuracy": value}}

    write_cells(home, ablation, results)
    page = write_reports(ablation, home).read_text()
    written = json.loads((home / "results.json").read_text(), parse_constant=pytest.fail)
    rows = written["rows"]
    assert rows[0]["numbers"]["class_accuracy/accuracy"] == {"mean": None, "half_width_95": None, "by_seed": {}}
    assert rows[1]["numbers"]["class_accuracy/accuracy"]["mean"] == pytest.approx(0.505)
    tex = (home / "results.tex").read_text().splitlines()
    assert tex[4].endswith(r"& -- \\")
    assert r"\mathbf" in tex[5]
    assert page.count("<b>") == 1
    assert page.count("●</span>") == 3  # all other groups look alike
    assert not re.search(r"\bnan\b|\binf\b", "\n".join(tex) + (home / "results.csv").read_text())
    text = write_page(ablation, home, tmp_path / "docs" / "page.md").read_text()
    assert "| low | euler | 18 | – | baseline |  |" in text


def test_cells_without_settings_or_another_number_of_a_metric(file, tmp_path):
    """`distance_ratio` is best near 1, and numbers of unknown metrics are left out."""
    text = FILE.replace('("class_accuracy",)', '("nearest_neighbours",)')
    file.write_text(text)
    ablation, home = Ablation.read(file), tmp_path / "out"
    ratios = {("low", "euler"): 3.0, ("low", "heun"): 1.1, ("high", "euler"): 0.2, ("high", "heun"): 0.85}

    def results(cell):
        ratio = ratios[tuple(cell.values.values())]
        return {"nearest_neighbours": {"distance_ratio": ratio}, "of_old": {"x": 1.0}}

    write_cells(home, ablation, results)
    groups = read(ablation, home)
    columns = number_columns(ablation, groups)
    assert columns == ["nearest_neighbours/distance_ratio"]
    assert column_title(columns[0]) == "nearest neighbours → 1"
    assert best_group(groups, columns[0]) == ("low", "heun")
    assert front(groups, columns[0]) == [False, True, False, False]
    for path in (home / "cells").glob("*.json"):
        content = json.loads(path.read_text())
        content["results"]["settings"] = {}
        path.write_text(json.dumps(content))
    groups = read(ablation, home)
    assert math.isnan(groups[0].evaluations)
    assert front(groups, columns[0]) == [False] * 4
    assert json.loads(write_reports(ablation, home).with_name("results.json").read_text(), parse_constant=pytest.fail)
    write_page(ablation, home, tmp_path / "docs" / "page.md")


def test_no_cell_is_done_yet(file, tmp_path):
    ablation = Ablation.read(file)
    write_reports(ablation, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []
    with pytest.raises(UserError, match=r"no cell of .* is done"):
        write_page(ablation, tmp_path, tmp_path / "page.md")


@pytest.mark.parametrize(
    "content", [b"", b'{"results": {', b"[]", b'{"results": 3}', b'{"results": {}}', b"\xff\xfe", b'{"a": 1}',
                b'{"results": {"settings": {}, "class_accuracy": [1]}}']
)  # fmt: skip
def test_a_damaged_cell_is_open_again_and_named(file, tmp_path, content):
    ablation = Ablation.read(file)
    write_cells(tmp_path, ablation, lambda cell: {"class_accuracy": {"accuracy": 0.5}})
    bad = result_file(tmp_path, ablation.cells[0])
    bad.write_bytes(content)
    assert not is_done(tmp_path, ablation.cells[0])
    assert all(is_done(tmp_path, cell) for cell in ablation.cells[1:])
    (line,) = damage(tmp_path, ablation.cells)
    assert str(bad) in line
    assert "\n" not in line
    write_reports(ablation, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["cells_done"] == 7


def test_letters_that_mean_something_to_latex_and_tables(file, tmp_path):
    file.write_text(FILE.replace('"heun"', '"h|e_u&n #1 {$}^~\\\\"', 1))
    ablation = Ablation.read(file)
    write_cells(tmp_path, ablation, lambda cell: {"class_accuracy": {"accuracy": 0.5 + 0.1 * cell.seed}})
    write_reports(ablation, tmp_path)
    tex = (tmp_path / "results.tex").read_text()
    assert r"h|e\_u\&n \#1 \{\$\}\textasciicircum{}\textasciitilde{}\textbackslash{}" in tex
    page = write_page(ablation, tmp_path, tmp_path / "docs" / "page.md").read_text()
    assert r"| h\|e_u&n" in page
