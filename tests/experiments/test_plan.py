"""The messages, tables and exit codes of the plan command; the compiler itself if libtpu is installed."""

import importlib.util
import json

import pytest

from configs import digits_dit, digits_unet, imagenet256_dit_xl2
from diffusion_jax.errors import UserError
from diffusion_jax.parallel import topology
from experiments.running import planning
from experiments.running.planning import Plan

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is missing: pip install -e '.[tpu]'"
)


def plan(**changes):
    fields = dict(
        program="train step",
        strategy="data",
        topology="v5e:4x4",
        chips=16,
        devices=16,
        mesh={"data": 16, "fsdp": 1, "tensor": 1},
        batch_size=256,
        memory={"peak": 20_000_000_000},
        limit=16_000_000_000,
        model_flops=1e12,
        compiled_flops=2e12,
        traffic=10**9,
        collectives={},
        sent_between_slices=0,
        unknown_loops=0,
        seconds=0.5,
        bound="computation",
        steps=86_400,
        trace_seconds=1.0,
        compile_seconds=1.0,
    )
    return Plan(**(fields | changes))


def test_a_strategy_says_everything():
    config = imagenet256_dit_xl2.get_config()
    assert config.model.remat == "full"
    plain = planning.configured(config, "fsdp:4+tensor:2")
    assert (plain.parallel.data, plain.parallel.fsdp, plain.parallel.tensor) == (-1, 4, 2)
    assert plain.model.remat == "none"
    mended = planning.configured(config, "fsdp+remat:dots+accumulate:2")
    assert (mended.parallel.fsdp, mended.model.remat, mended.train.accumulation) == (-1, "dots", 2)
    assert planning.configured(config, planning.AS_CONFIGURED) == config
    with pytest.raises(UserError, match="fsdp"):
        planning.configured(config, "fspd")


def test_mends_are_tried_from_the_smallest_on():
    tried = list(planning.mends(digits_dit.get_config(), plan()))
    assert tried[:3] == [("data+remat", "v5e:4x4"), ("fsdp", "v5e:4x4"), ("fsdp+remat", "v5e:4x4")]
    assert tried[3] == ("fsdp+remat+accumulate:2", "v5e:4x4")
    assert tried[-1] == ("fsdp+remat", "v5e:16x16")
    configured = plan(strategy=planning.AS_CONFIGURED, mesh={"data": 1, "fsdp": 16, "tensor": 1})
    assert next(planning.mends(digits_dit.get_config(), configured)) == ("fsdp+remat", "v5e:4x4")
    without = [strategy for strategy, _ in planning.mends(digits_unet.get_config(), plan())]
    assert not any("remat" in strategy for strategy in without), "this network does not know it"


def test_time_and_cost_of_the_schedule():
    found = plan()
    assert found.days == pytest.approx(0.5)
    assert found.chip_hours == pytest.approx(0.5 * 24 * 16)
    assert found.utilization == pytest.approx(256 * 1e12 / (0.5 * 197e12 * 16))
    assert not found.fits
    small = plan(memory={"peak": 10**9}, seconds=1.0)
    assert planning.fastest([found, small]) is small
    assert planning.fastest([found]) is None


REFUSALS = {
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (45.05G) exceeds "
    "available HBM (15.75G).": 45.05,
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm.": 20.0,
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_the_compiler_refuses_does_not_fit(message):
    memory = planning.refused_memory(message, 16_000_000_000)
    assert memory["peak"] == int(REFUSALS[message] * 2**30)
    refused = plan(memory=memory, **planning._NOT_COMPILED)
    assert not refused.fits
    assert refused.utilization == refused.days == 0


def test_topologies():
    chip, count = topology.parse_topology("v5p:4x4x4")
    assert (chip.memory, count) == (95e9, 64)
    assert topology.larger_topologies("v5e:4x4")[0] == "v5e:4x8"
    for wrong in ("v5:4x4", "v5e:16", "v5e:4x4x4", "v5p:4x4", "v5e:0x4"):
        with pytest.raises(UserError):
            topology.parse_topology(wrong)


def test_wrong_flags_are_one_line(command):
    config = "--config=configs/digits_unet.py"
    assert "--topology" in command.fails("plan", config)
    assert "v5e" in command.fails("plan", config, "--topology=v5:4x4")
    assert "AXIS:LENGTH" in command.fails("plan", config, "--topology=v5e:2x2", "--mesh=rows:4")
    assert "remat" in command.fails("plan", config, "--topology=v5e:2x2", "--compare=data,remt")


@needs_compiler
def test_a_small_transformer_on_two_kinds_of_slice(command):
    for name in ("v5e:2x2", "v6e:2x2"):
        out, _ = command.run(
            "plan",
            "--config=configs/digits_dit.py",
            f"--topology={name}",
            "--compare=data,fsdp",
            "--json",
            "--nosampler",
        )
        found = json.loads(out.splitlines()[-1])
        assert found["fits"]
        data, fsdp = found["plans"]
        assert fsdp["memory"]["arguments"] < data["memory"]["arguments"]
        assert data["model_flops"] == fsdp["model_flops"]
        assert list(data["collectives"]) == ["all-reduce"]
        assert data["unknown_loops"] == 0
