"""The pages of committed results state their origin and later changes, and a small cell is reproduced."""

import json
import math

import pytest

from diffusion_jax.errors import UserError
from experiments.ground import workdir
from experiments.sweeps import origin
from experiments.sweeps.ablation import Ablation
from experiments.sweeps.cells import deciding_number, result_file
from experiments.sweeps.origin import PROMISE, code_state, config_changes, config_state, digest, refresh, tail
from tests.processes import ROOT

PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))


def results_of(page):
    return json.loads((page.with_suffix("") / "results.json").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_says_where_its_numbers_come_from_and_whether_the_config_is_still_that(page):
    results, text = results_of(page), page.read_text()
    made = results["made"]
    assert made["config_digest"] == digest(made["config"], made["cells"])
    assert f"Made at commit {made['commit']} with jax {made['jax']} on {made['devices']}." in text
    assert "\n".join(PROMISE) in text
    ablation = Ablation.read(ROOT / results["config"])
    assert config_state(made, ablation) in text, "run `python -m experiments.results`"
    assert "Up to commit " in text
    assert results["metric"] == deciding_number(ablation)


def test_a_changed_config_is_named(tmp_path):
    page = next(page for page in PAGES if page.stem == "samplers_nfe")
    results = results_of(page)
    made = results["made"]
    there = Ablation.read(ROOT / results["config"])
    now = Ablation.read(ROOT / results["config"], ["train.steps=7", "log.every=3"])
    before = config_changes(made, there)
    assert set(config_changes(made, now)) - set(before) == {"train.steps: 900 -> 7"}
    assert "`train.steps: 900 -> 7`" in config_state({**origin.made(there, tmp_path), "commit": "0"}, now)
    assert "The config is the one" in config_state(origin.made(there, tmp_path), there)


def test_the_end_of_a_page_is_written_again(tmp_path):
    results = results_of(PAGES[0])
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "results.json").write_text(json.dumps(results))
    (tmp_path / "page.md").write_text("# Title\n\n| a |\n\nNumbers by seed: old\nolder\n")
    refresh(tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# Title\n\n| a |\n\nNumbers by seed: [page/results.json]")
    assert "older" not in text
    refresh(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == text
    (tmp_path / "page.md").write_text("# Title\n")
    with pytest.raises(UserError, match=r"page\.md has no line that begins with 'Numbers by seed"):
        refresh(tmp_path / "page.md")


def test_of_an_unknown_commit_nothing_is_said(tmp_path):
    assert code_state(None) == code_state("0000000") == ""
    ablation = Ablation.read(ROOT / results_of(PAGES[0])["config"])
    assert tail("page", origin.made(ablation, tmp_path), ablation)[0].endswith("(page/results.json).")


def test_prose_is_not_a_change_of_the_code():
    text = 'def f():\n    """Before."""\n    raise ValueError("before")\n'
    other_prose = 'def f():\n    """After, and longer."""\n    raise ValueError("after")  # a comment\n'
    assert origin._without_prose(text) == origin._without_prose(other_prose)
    assert origin._without_prose(text) != origin._without_prose(text.replace("ValueError", "TypeError"))
    assert origin._without_prose('x = "before"') != origin._without_prose('x = "after"')


@pytest.mark.slow
def test_a_committed_cell_is_made_again(command, tmp_path):
    """The smallest cell (600 steps) is trained again, and its numbers lie in the interval that docs/results.md
    promises."""
    page = next(page for page in PAGES if page.stem == "edm_design_space")
    results = results_of(page)
    file = ROOT / results["config"]
    place = f"data.data_dir={command.data_dir}"
    ablation = Ablation.read(file, [place])
    cell = ablation.cells[0]
    home = tmp_path / "trainings" / cell.training
    home.parent.mkdir()
    config = tmp_path / "cell.json"
    config.write_text(json.dumps(workdir.to_json(cell.training_config)))
    command.run("train", f"--config={ROOT}/configs/from_json.py:{config}", f"--workdir={home}", timeout=1800)
    arguments = (f"--config={file}", f"--workdir={tmp_path}", f"--training={cell.training}", f"--set={place}")
    command.run("ablate", *arguments, timeout=1800)
    found = json.loads(result_file(tmp_path, cell).read_text())["results"]
    (row,) = [row for row in results["rows"] if row["values"] == dict(cell.values)]
    for name, numbers in row["numbers"].items():
        metric, _, number = name.partition("/")
        committed = numbers["by_seed"][str(cell.seed)]
        assert math.isclose(found[metric][number], committed, abs_tol=numbers["half_width_95"]), name
