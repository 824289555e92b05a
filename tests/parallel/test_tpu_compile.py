"""Promise 5: every config compiles with the real TPU compiler for the topology and memory in its docstring, with the
numbers of docs/tpu_plans.md. No TPU is needed, but `pip install libtpu` is."""

import ast
import importlib.util
import json
import re

import jax
import pytest

from benchmarks import tpu_plans
from configs import digits_dit
from diffusion_jax import parallel
from diffusion_jax.errors import UserError
from diffusion_jax.models import parameter_shapes
from diffusion_jax.parallel.topology import topology_devices
from experiments.building.wiring import Experiment
from experiments.running import planning

PLANS = json.loads(tpu_plans.FILE.read_text())
MEMORY = re.compile(r"^Topology: TPU .*?needs\s+([\d.]+)\s+GB\s+per\s+chip", re.M | re.S)
FAST = ("configs/digits_dit.py", "configs/imagenet256_dit_xl2.py")  # these take a minute; a U-Net takes up to twenty
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is missing: pip install libtpu"
)
pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.parametrize("config", tpu_plans.CONFIGS)
def test_docstring_names_a_topology_and_its_memory(config):
    train = PLANS["configs"][config][0]
    assert train["topology"] == tpu_plans.topology_of(config)
    found = MEMORY.search(ast.get_docstring(ast.parse((tpu_plans.ROOT / config).read_text())))
    assert found, f"{config} must name the memory per chip"
    assert float(found[1]) * 1e9 == pytest.approx(train["memory"]["peak"], rel=0.03, abs=0.006e9), "mend the docstring"


@pytest.mark.parametrize("config", tpu_plans.CONFIGS)
def test_the_numbers_are_of_the_config_as_it_is(config):
    now = planning.digest(tpu_plans.get_config(config))
    assert PLANS["digests"][config] == now, f"run `python -m benchmarks.tpu_plans --only={config}`"


def test_every_config_fits_and_the_page_is_that_of_the_numbers():
    papers = {str(path.relative_to(tpu_plans.ROOT)) for path in (tpu_plans.ROOT / "configs" / "papers").glob("*.py")}
    assert papers <= set(tpu_plans.CONFIGS), "every paper names its slice"
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
    """The compiler runs in a separate process, because it takes minutes and gigabytes."""
    (found,) = tpu_plans.compiled(config, "--nosampler")
    expected = PLANS["configs"][config][0]
    memory = found["memory"]
    # All of the state is donated, so the step needs no second copy of it.
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


def least_sent(strategy, *, blocks=4, dim=1152, examples=256, tokens=256, chips=16):
    """The minimum number of bytes that a chip sends in a train step of DiT-XL/2, in bfloat16, around rings of chips."""
    wide, modulation, rest = 12 * blocks * dim**2, 6 * blocks * dim**2, (1001 + 256 + 16 + 32) * dim + 4 * dim**2
    activations = examples * tokens * dim

    def gather(elements, among):  # the same for a reduce-scatter; an all-reduce is both
        return 2 * elements * (among - 1) / among

    match strategy:
        case "data":  # sum of the gradients
            return 2 * gather(wide + modulation + rest, chips)
        case "fsdp" | "fsdp+remat":  # parameters gathered forward and backward, gradients scattered
            return 3 * gather(wide + modulation + rest, chips)
        case "tensor:4+remat":  # two sums over heads and hidden units in each of three passes; the gradients
            sums = 6 * blocks * activations / 4
            return 2 * gather(sums, 4) + 2 * gather(wide / 4 + modulation + rest, 4)
        case "tensor:2+fsdp:4+remat":  # both on their parts; the rest is summed over the data axis of two
            sums, held = 6 * blocks * activations / 8, wide / 2 + modulation + rest
            return 2 * gather(sums, 2) + 3 * gather(held, 4) + 2 * gather(held / 4, 2)
        case "context:4+remat":  # keys and values gathered twice and scattered backward; the gradients
            return 3 * gather(2 * blocks * activations / 4, 4) + 2 * gather(wide + modulation + rest, chips)


SLOW_STRATEGIES = ("data", "fsdp", "tensor:4+remat", "tensor:2+fsdp:4+remat", "context:4+remat")


@needs_compiler
@pytest.mark.parametrize(
    "strategy", ["fsdp+remat", *(pytest.param(strategy, marks=pytest.mark.slow) for strategy in SLOW_STRATEGIES)]
)
def test_a_step_sends_hardly_more_than_it_must(strategy):
    """A step sends at most 5% more than necessary, and FSDP never sums the gradients of whole matrices."""
    (plan,) = tpu_plans.compiled("tests/parallel/dit_xl2_four_blocks.py", "--nosampler", f"--strategy={strategy}")
    assert plan["fits"]
    assert tpu_plans.sent(plan) <= 1.05 * least_sent(strategy)
    if strategy.startswith("fsdp"):
        assert plan["collectives"]["all-reduce"]["sent_bytes"] <= 0.05 * least_sent("data")
        # Modulations are a third of the parameters and are not gathered: their few activation rows are sent instead.
        assert tpu_plans.sent(plan) <= 0.75 * least_sent(strategy)


@needs_compiler
@pytest.mark.parametrize("strategy", ["context:4", pytest.param("data", marks=pytest.mark.slow)])
def test_16384_tokens_make_no_matrix_of_logits_on_tpu(strategy):
    """DiT-S/2 on four chips, with a quarter of the tokens or examples each, forms no logits; the sampler uses the
    kernel."""
    changed = ("--topology=v5e:2x2", f"--strategy={strategy}+remat", "--batch=8", "--config.sampling.batch_size=8")
    train, sampler = tpu_plans.compiled("tests/parallel/dit_16384_tokens.py", "--config.sampling.steps=10", *changed)
    tokens, heads, examples = 128**2, 6, 8
    matrix = examples * heads * tokens**2 * 2 // 4  # bytes of one block's logits on one chip, in bfloat16
    assert train["memory"]["temporaries"] < matrix / 2
    assert sampler["memory"]["temporaries"] < matrix / 4
    assert sampler["compiled_flops"] == pytest.approx(sampler["model_flops"], rel=0.01), "the kernel's are counted"
    for plan, passes in ((train, 2), (sampler, 2 * 10)):  # forward and recomputed; guided
        assert plan["fits"]
        keys_and_values = 2 * passes * 12 * examples * tokens * 384 * 2  # bytes for all blocks, in bfloat16
        gathered = plan["collectives"].get("all-gather", {"sent_bytes": 0})["sent_bytes"]
        assert gathered == pytest.approx(keys_and_values * 3 / 4 if strategy == "context:4" else 0, rel=0.05)


@needs_compiler
def test_two_slices_share_nothing_but_gradients():
    """Only the data axis crosses the network between slices; parameters are gathered within a slice."""
    devices = topology_devices("v5e:2x2*2")
    mesh = parallel.LAYOUTS.build({"name": "jit", "data": 2, "fsdp": -1}, devices=devices).mesh
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    for slice_index, row in enumerate(mesh.devices):
        assert {device.slice_index for device in row.flat} == {slice_index}
    with pytest.raises(UserError, match=r"is the one between 2 slices .*set parallel.data=2"):
        parallel.LAYOUTS.build({"name": "jit", "data": 1, "fsdp": -1}, devices=devices)
    (plan,) = tpu_plans.compiled("configs/digits_dit.py", "--nosampler", "--topology=v5e:2x2*2", "--mesh=data:2,fsdp:4")
    assert plan["chips"] == plan["devices"] == 8
    assert plan["fits"]
    shapes = jax.tree.leaves(parameter_shapes(Experiment.planned(digits_dit.get_config()).network))
    gradients = 4 * sum(leaf.size for leaf in shapes)  # bytes; each of four chips sums a quarter over two slices
    assert plan["sent_between_slices"] == pytest.approx(gradients / 4, rel=0.05)
    assert plan["bound"] == "network between slices"
