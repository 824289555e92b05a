"""Ask the real TPU compiler what a config needs on a slice, before renting it. Needs `pip install -e '.[tpu]'`, no TPU.

    python -m experiments.plan --config=configs/imagenet256_dit_xl2.py --topology=v5e:4x4
    python -m experiments.plan --config=configs/imagenet256_dit_xl2.py --topology=v5p:4x4x4
    --compare=data,fsdp,fsdp+remat
    python -m experiments.plan --config=configs/digits_dit.py --topology='v5e:2x2*2'     # two slices
    python -m experiments.plan --config=configs/finetune/sd15.py --topology=v5e:2x2 --adapter=lora

The train step and the sampler are compiled as they would run. The command prints memory, operations, traffic,
communication and a roofline estimate: the bound by the chip's published peaks, not a measurement. The exit code is 2 if
the config does not fit, and the message names the smallest change that makes it fit.
"""

import math
import re

from experiments.ground import cli


def topology_text(text: str) -> str:
    """A text like v5e:4x4 or v5e:4x4*2, with at most a million chips; raises ValueError for others."""
    if not re.fullmatch(r"[a-z0-9]+:[1-9][0-9]{0,6}(x[1-9][0-9]{0,6}){1,2}(\*[1-9][0-9]{0,6})?", text):
        raise ValueError
    if math.prod(map(int, re.findall(r"[0-9]+", text.partition(":")[2]))) > 2**20:
        raise ValueError
    return text


def mesh_text(text: str) -> str:
    """A text AXIS:LENGTH; raises ValueError for others."""
    if not re.fullmatch(r"(data|fsdp|tensor|context):(-1|[1-9][0-9]{0,6})", text):
        raise ValueError
    return text


def strategy_text(text: str) -> str:
    """Words, some with :N or :WORD, joined by +; raises ValueError for others."""
    if not re.fullmatch(r"[a-z_ ]+(:([a-z]+|[1-9][0-9]{0,6}))?(\+[a-z_]+(:([a-z]+|[1-9][0-9]{0,6}))?)*", text):
        raise ValueError
    return text


FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
TOPOLOGY = FLAGS.string(
    "topology",
    None,
    "slice to compile for",
    check=topology_text,
    allowed="a chip and a shape, such as v5e:4x4 or v5p:4x4x4, and v5e:4x4*2 for two slices; 1,048,576 chips at most",
)
PIECES = "pieces of data, fsdp[:N], tensor:N, context:N, remat[:dots], accumulate:N, joined by +"
STRATEGY = FLAGS.string("strategy", None, "strategy instead of the config's", check=strategy_text, allowed=PIECES)
MESH = FLAGS.strings(
    "mesh",
    None,
    "lengths of the mesh's axes, for example data:4,fsdp:4",
    check=mesh_text,
    allowed="AXIS:LENGTH with AXIS one of data, fsdp, tensor and context, with commas between them",
)
BATCH = FLAGS.integer("batch", None, "images in a step, instead of train.batch_size", lower=1, upper=2**24)
ADAPTER = FLAGS.string(
    "adapter", None, "train an adapter of this name, such as lora, instead of the model of init.folder"
)
COMPARE = FLAGS.strings(
    "compare",
    None,
    "strategies for one table, for example data,fsdp,fsdp+remat",
    check=strategy_text,
    allowed=f"strategies with commas between them, each {PIECES}",
)
SAMPLER = FLAGS.boolean("sampler", True, "compile the sampler too")
JSON = FLAGS.boolean("json", False, "print one JSON object instead of tables")
cli.begin(FLAGS)

import json
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict
from rich.console import Console

from diffusion_jax.adapters import ADAPTERS
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.topology import CHIPS, number_of_slices, parse_topology
from experiments.building.kinds import plan_experiment
from experiments.ground import fields
from experiments.reports.tables import Column, Table
from experiments.running import planning
from experiments.running.planning import AS_CONFIGURED, Plan


def main(argv: Sequence[str]) -> int:
    if CONFIG.value is None or not TOPOLOGY.value:
        raise UserError(
            "give --config=... and --topology=..., for example "
            "--config=configs/imagenet256_dit_xl2.py --topology=v5e:4x4"
        )
    jax.config.update("jax_platforms", "cpu")  # the target of the compilation is not on this machine
    parse_topology(TOPOLOGY.value)
    config = with_flags(CONFIG.value)
    quiet = Console(stderr=True)

    def waiting(what: str, make: Callable[[], Plan]) -> Plan:
        with quiet.status(f"compiling {what} for {TOPOLOGY.value} (a transformer takes a minute, a U-Net several)"):
            return make()

    strategies = COMPARE.value or [STRATEGY.value or AS_CONFIGURED]
    for strategy in strategies:
        planning.configured(config, strategy)
    for line in plan_experiment(config).assumed:
        quiet.print(f"note: {line}", highlight=False)
    trained = [
        waiting(f"train step, {name}", lambda name=name: planning.train_plan(config, TOPOLOGY.value, name))
        for name in strategies
    ]
    best = planning.fastest(trained) or trained[-1]
    sampled = []
    if SAMPLER.value:
        sampled.append(waiting("sampler", lambda: planning.sample_plan(config, TOPOLOGY.value, best.strategy)))
    plans = [*trained, *sampled]
    fits = best.fits and all(plan.fits for plan in sampled)
    mend = None if best.fits else find_mend(config, best, waiting)
    if JSON.value:
        found = {"fits": fits, "plans": [plan.to_json() for plan in plans], "mend": mend and mend.to_json()}
        print(json.dumps(found, default=lambda value: value.__dict__))
    else:
        show(plans, best if COMPARE.value else None)
    if fits:
        return 0
    if best.fits:
        raise UserError(f"the sampler does not fit {TOPOLOGY.value}: lower sampling.batch_size")
    change = "nothing tried does" if mend is None else f"the smallest change found that does: {in_words(mend)}"
    raise UserError(f"the train step does not fit {TOPOLOGY.value}; {change}")


def with_flags(config: ConfigDict) -> ConfigDict:
    """The config with --mesh, --batch and --adapter."""
    config = config.copy_and_resolve_references()
    if ADAPTER.value:
        if not config.init.folder:
            raise UserError(f"--adapter={ADAPTER.value} needs an existing model: a config with {fields.INIT}")
        _ = ADAPTERS[ADAPTER.value]
        own = config.get(fields.ADAPTER, ConfigDict())
        with config.unlocked():
            config[fields.ADAPTER] = own if own.get("name") == ADAPTER.value else ConfigDict({"name": ADAPTER.value})
    if BATCH.value:
        config.train.batch_size = BATCH.value
    if MESH.value and (COMPARE.value or STRATEGY.value):
        raise UserError("--mesh, --strategy and --compare all choose the mesh: give one of them")
    if MESH.value:
        config.parallel.update(strategy="jit", data=1, fsdp=1, tensor=1, context=1)
    for item in MESH.value or ():
        match = re.fullmatch(r"(data|fsdp|tensor|context):(-1|[1-9]\d*)", item)
        if not match:
            raise UserError(f"--mesh needs AXIS:LENGTH with AXIS one of data, fsdp, tensor and context, got {item!r}")
        config.parallel[match[1]] = int(match[2])
    return config


def find_mend(config: ConfigDict, failed: Plan, waiting: Callable[..., Plan]) -> Plan | None:
    """The first change tried that makes the train step fit."""
    for strategy, topology in planning.mends(config, failed):
        try:
            plan = waiting(
                f"{strategy} on {topology}", lambda s=strategy, t=topology: planning.train_plan(config, t, s)
            )
        except UserError:  # the batch does not divide in this way
            continue
        if plan.fits:
            return plan
    return None


def in_words(plan: Plan) -> str:
    """The flags for a plan."""
    return f"--topology={plan.topology} --strategy={plan.strategy} ({plan.memory['peak'] / 1e9:.1f} GB per device)"


def show(plans: Sequence[Plan], best: Plan | None) -> None:
    """Print tables for people."""
    console = Console(width=118, highlight=False)
    first = plans[0]
    chip = CHIPS[first.topology.partition(":")[0]]
    console.print(
        f"TPU {first.topology}: {first.chips} chips of {chip.flops / 1e12:.0f} TFLOP/s (bfloat16), "
        f"{chip.memory / 1e9:.0f} GB at {chip.bandwidth / 1e9:.0f} GB/s, "
        f"{chip.interconnect / 1e9:.0f} GB/s to neighbours; {first.devices} devices"
    )
    columns = [Column(f"{plan.program}\n{plan.strategy}", number=True) for plan in plans]
    rows = [
        (label, *(cell(plan) if plan.seconds or label in KNOWN_BEFORE else "" for plan in plans))
        for label, cell in ROWS.items()
    ]
    Table.of(("", *columns), rows).print(console)
    console.print("Estimates are rooflines: what the published peaks allow at most. A real step takes longer.")
    if number_of_slices(first.topology) > 1 and chip.network is None:
        console.print("How fast the network between slices is, is not published for this chip: its time is left out.")
    if best is not None:
        verdict = f"fastest that fits, as predicted: {best.strategy}" if best.fits else "none of them fits"
        console.print(verdict, style="bold")


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def _schedule(plan: Plan, value: float, unit: str) -> str:
    return f"{value:,.1f} {unit}" if plan.steps else ""


KNOWN_BEFORE = ("fits", "memory per device: peak", "  of", "mesh", "images of a run", "model operations per image")
ROWS: dict[str, Callable[[Plan], str]] = {
    "fits": lambda p: "yes" if p.fits else "NO",
    "memory per device: peak": lambda p: ("" if p.seconds else "at least ") + _gigabytes(p.memory["peak"]),
    "  of": lambda p: _gigabytes(p.limit),
    "  arguments": lambda p: _gigabytes(p.memory["arguments"]),
    "  temporaries": lambda p: _gigabytes(p.memory["temporaries"]),
    "mesh": lambda p: " ".join(f"{axis}:{n}" for axis, n in p.mesh.items() if n > 1) or "1 device",
    "images of a run": lambda p: f"{p.batch_size:,}",
    "model operations per image": lambda p: f"{p.model_flops / 1e9:,.1f} GFLOP",
    "compiled operations per image": lambda p: f"{p.compiled_flops / 1e9:,.1f} GFLOP",
    "main memory traffic per device": lambda p: _gigabytes(p.traffic),
    "operations per byte": lambda p: f"{p.intensity:,.0f}",
    "sent per device": lambda p: _gigabytes(sum(c.sent_bytes for c in p.collectives.values())),
    **{
        f"  {kind}": lambda p, kind=kind: (
            f"{p.collectives[kind].count:,} x, {_gigabytes(p.collectives[kind].sent_bytes)}"
            if kind in p.collectives
            else ""
        )
        for kind in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    },
    "  between slices": lambda p: _gigabytes(p.sent_between_slices) if number_of_slices(p.topology) > 1 else "",
    "estimate: time of a run": lambda p: f"{1e3 * p.seconds:,.4g} ms",
    "  bound by": lambda p: p.bound,
    "  images per second": lambda p: f"{p.batch_size / p.seconds:,.0f}",
    "  model FLOPs utilization": lambda p: f"{100 * p.utilization:.0f}%",
    "  full schedule": lambda p: _schedule(p, p.days, "days"),
    "  chip-hours": lambda p: _schedule(p, p.chip_hours, ""),
    "compiled in": lambda p: f"{p.compile_seconds:.0f} s",
    "loops of unknown length": lambda p: str(p.unknown_loops or ""),
}


if __name__ == "__main__":
    cli.run(main)
