"""Promise 5: every config compiles with the real TPU compiler, for the topology and within the memory that its
docstring names, to the numbers of docs/tpu_plans.md. No TPU is needed; `pip install libtpu` is."""

import ast
import importlib.util
import json
import re

import pytest

from benchmarks import tpu_plans

PLANS = json.loads(tpu_plans.FILE.read_text())
MEMORY = re.compile(r"^Topology: TPU .*?needs\s+([\d.]+)\s+GB\s+per\s+chip", re.M | re.S)
FAST = ("configs/digits_dit.py", "configs/imagenet256_dit_xl2.py")  # a minute; a U-Net takes up to twenty
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is missing: pip install libtpu"
)


@pytest.mark.parametrize("config", tpu_plans.CONFIGS)
def test_docstring_names_a_topology_and_its_memory(config):
    train = PLANS["configs"][config][0]
    assert train["topology"] == tpu_plans.topology_of(config)
    found = MEMORY.search(ast.get_docstring(ast.parse((tpu_plans.ROOT / config).read_text())))
    assert found, f"{config} must name the memory per chip"
    assert float(found[1]) * 1e9 == pytest.approx(train["memory"]["peak"], rel=0.03, abs=0.006e9), "mend the docstring"


def test_every_config_fits_and_the_page_is_that_of_the_numbers():
    assert PLANS["configs"].keys() == set(tpu_plans.CONFIGS)
    for plans in PLANS["configs"].values():
        assert [plan["program"] for plan in plans] == ["train step", "sampler"]
        assert all(plan["fits"] for plan in plans)
    assert tpu_plans.page(PLANS) == tpu_plans.PAGE.read_text(), "run `python -m benchmarks.tpu_plans --only=none`"


def test_recomputing_trades_memory_for_operations():
    memory, operations = zip(
        *((plan["memory"]["temporaries"], plan["compiled_flops"]) for plan in PLANS["remat"]), strict=True
    )
    assert [plan["strategy"] for plan in PLANS["remat"]] == list(tpu_plans.REMAT)
    assert sorted(memory, reverse=True) == list(memory)
    assert sorted(operations) == list(operations)


@needs_compiler
@pytest.mark.parametrize(
    "config",
    [config if config in FAST else pytest.param(config, marks=pytest.mark.slow) for config in tpu_plans.CONFIGS],
)
def test_train_step_compiles_for_tpu_as_the_page_says(config):
    """In a process of its own: the compiler takes minutes and gigabytes of this machine."""
    (found,) = tpu_plans.compiled(config, "--nosampler")
    expected = PLANS["configs"][config][0]
    memory = found["memory"]
    # All state is donated: the step needs no second copy of it.
    assert memory["outputs"] - memory["aliased"] < 0.01 * memory["arguments"]
    assert found["fits"]
    assert memory["peak"] == pytest.approx(expected["memory"]["peak"], rel=0.1, abs=0.02e9)
    assert found["compiled_flops"] == pytest.approx(expected["compiled_flops"], rel=0.01)
    assert tpu_plans.sent(found) == pytest.approx(tpu_plans.sent(expected), rel=0.05)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("config", tpu_plans.CONFIGS)
def test_sampler_compiles_for_tpu_as_the_page_says(config):
    found, expected = tpu_plans.compiled(config)[1], PLANS["configs"][config][1]
    assert found["fits"]
    assert found["memory"]["peak"] == pytest.approx(expected["memory"]["peak"], rel=0.1, abs=0.02e9)
    assert found["compiled_flops"] == pytest.approx(expected["compiled_flops"], rel=0.01)
