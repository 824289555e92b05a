"""The benchmark commands for reliability: the table of docs/reliability.md, and the cost of checkpoints."""

import shutil
import signal

import pytest

from benchmarks import faults
from diffusion_jax.errors import UserError
from tests.faults.faults import FAULTS, RESUMED, Outcome
from tests.processes import ROOT


def test_moments_of_the_same_kind_are_counted_together(tmp_path):
    rows = [
        ("SIGKILL", Outcome("writing a checkpoint after step 10", RESUMED)),
        ("SIGKILL", Outcome("writing a checkpoint after step 40", RESUMED)),
        ("SIGKILL", Outcome("starting", RESUMED)),
        ("data_dead", Outcome("all fail", "stopped")),
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{faults.BEGIN}\nold\n{faults.END}\nafter\n")
    faults.write_page(page, rows)
    text = page.read_text()
    assert f"| SIGKILL | writing a checkpoint | 2 | {RESUMED} |" in text
    assert f"| SIGKILL | starting | 1 | {RESUMED} |" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(UserError, match="needs the lines"):
        faults.write_page(tmp_path / "page.md", [])


def test_the_page_has_every_fault():
    text = (ROOT / "docs" / "reliability.md").read_text()
    table = text.partition(faults.BEGIN)[2].partition(faults.END)[0]
    for name in (*FAULTS, signal.SIGKILL.name, signal.SIGTERM.name):
        assert f"| {name} |" in table, "run `python -m benchmarks.faults --page=docs/reliability.md`"


def test_the_cost_of_checkpoints_is_read_from_a_run(command, finished):
    """The limit on the cost of checkpoints decides the exit code; a tiny run saves far too often."""
    out, _ = command.run("benchmarks.checkpoints", f"--workdir={finished[0]}", "--limit=100")
    assert "20 steps" in out
    command.run("benchmarks.checkpoints", f"--workdir={finished[0]}", "--limit=0.0001", code=1)


def test_a_run_without_checkpoints_has_no_cost(command, finished, tmp_path):
    for name in ("config.json", "data.json"):
        shutil.copy(finished[0] / name, tmp_path / name)
    (tmp_path / "timings.jsonl").write_text("")
    assert "has no timings of a checkpoint yet" in command.fails("benchmarks.checkpoints", f"--workdir={tmp_path}")
