"""Promise 5: the train step of every config compiles with the real TPU compiler, for the topology and within the
memory that the config's docstring names. No TPU is needed; `pip install libtpu` is."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(ROOT.glob("configs/**/*.py"))
HBM = 16e9  # bytes of a TPU v5e chip
PROMISE = re.compile(
    r"^Topology: TPU (v\w+) ([\dx]+) \((\d+) chips\);.*?needs\s+([\d.]+)\s+GB\s+per\s+chip", re.M | re.S
)


def promised(config):
    """Topology, chips and GB per chip that a config's docstring names."""
    found = PROMISE.search(ast.get_docstring(ast.parse(config.read_text())))
    assert found, f"{config} must name its topology and the memory per chip"
    return f"{found[1]}:{found[2]}", int(found[3]), float(found[4])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_docstring_names_a_topology_that_fits(config):
    topology, chips, gigabytes = promised(config)
    rows, columns = map(int, topology.split(":")[1].split("x"))
    assert rows * columns == chips
    assert gigabytes * 1e9 < HBM


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is missing: pip install libtpu"
)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_train_step_compiles_for_tpu(config):
    """In a process of its own: the compiler takes minutes and gigabytes of this machine."""
    topology, chips, gigabytes = promised(config)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.plan", f"--config={config}", f"--topology={topology}"),
            *("--json", "--nosampler"),
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    (found,) = json.loads(result.stdout.splitlines()[-1])["plans"]
    assert found["chips"] == chips
    memory = found["memory"]
    # All state is donated: the step needs no second copy of it.
    assert memory["outputs"] - memory["aliased"] < 0.01 * memory["arguments"]
    assert found["fits"]
    assert memory["peak"] == pytest.approx(gigabytes * 1e9, rel=0.1, abs=0.02e9), "mend the docstring"
