"""The notebooks run from the first cell to the last, and their files are small."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 250_000
QUICK = {"4_plan_a_tpu_run"}  # the others train, or compile many samplers


def cases():
    marks = {path: () if path.stem in QUICK else pytest.mark.slow for path in NOTEBOOKS}
    return [pytest.param(path, marks=marks[path], id=path.stem) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", cases())
def test_it_runs(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()  # raises CellExecutionError
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.get("name") == "stderr"], "a cell warns"
    assert any("image/png" in output.get("data", ()) for output in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_small_and_was_run_in_order(path):
    assert path.stat().st_size < MOST_BYTES
    counts = [cell["execution_count"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "make notebooks"


def test_there_are_four():
    assert len(NOTEBOOKS) == 4
    assert {path.stem for path in NOTEBOOKS} >= QUICK
