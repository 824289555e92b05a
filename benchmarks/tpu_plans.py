"""Plans of every config on its TPU topology by the TPU compiler: writes docs/tpu_plans.json and docs/tpu_plans.md.

    pip install -e '.[tpu]'
    python -m benchmarks.tpu_plans                                   # all configs; three hours on two cores
    python -m benchmarks.tpu_plans --only=configs/digits_dit.py      # only these; the others stay as in the file
    python -m benchmarks.tpu_plans --only=none                       # only write the page, from the file

`experiments.plan` compiles the train step and the sampler of each config in a separate process, for the topology that
the config's docstring names. Then it compiles DiT-XL/2 with each way to keep or recompute activations.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
ONLY = FLAGS.strings("only", None, "configs to compile, by default all; the word none compiles nothing")
cli.begin(FLAGS)

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import RunError, UserError
from experiments.reports.tables import Cell, Table
from experiments.running import planning

ROOT = Path(__file__).parent.parent
PROMISE = re.compile(r"^Topology: TPU (v\w+) ([\dx]+) \((\d+) chips\);", re.M)
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for room in ("configs", "configs/papers", "configs/finetune")
    for path in (ROOT / room).glob("*.py")
    if PROMISE.search(path.read_text())
)
LATER = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "finetune").glob("*.py") if path.name != "__init__.py"
)  # configs without a topology are planned by hand
FILE, PAGE = ROOT / "docs" / "tpu_plans.json", ROOT / "docs" / "tpu_plans.md"
REMAT_CONFIG = "configs/imagenet256_dit_xl2.py"
REMAT = ("fsdp", "fsdp+remat:dots", "fsdp+remat")

KEPT = (  # numbers that do not depend on the machine that compiles
    *("program", "strategy", "topology", "chips", "devices", "batch_size", "memory", "limit", "fits", "model_flops"),
    *("compiled_flops", "traffic", "collectives", "sent_between_slices"),
    *("seconds", "bound", "utilization", "steps", "days", "chip_hours"),
)


def topology_of(config: str) -> str:
    """The slice that a config's docstring names, in the form of `experiments.plan`."""
    found = PROMISE.search(ast.get_docstring(ast.parse((ROOT / config).read_text())) or "")
    if not found:
        raise UserError(f"{config}: its docstring names no topology ('Topology: TPU v5e 2x2 (4 chips); ...')")
    return f"{found[1]}:{found[2]}"


def get_config(config: str) -> ConfigDict:
    """The config in a file."""
    return runpy.run_path(str(ROOT / config))["get_config"]()


def compiled(config: str, *arguments: str) -> list[dict[str, Any]]:
    """Newly compiled plans of a config."""
    command = ("-m", "experiments.plan", f"--config={config}", f"--topology={topology_of(config)}", "--json")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if result.returncode not in (0, 2) or not result.stdout.strip():
        raise RunError(f"{config} could not be compiled: {(result.stderr.splitlines() or ['no output'])[-1]}")
    return [{name: plan[name] for name in KEPT} for plan in json.loads(result.stdout.splitlines()[-1])["plans"]]


def main(argv: Sequence[str]) -> int:
    plans = json.loads(FILE.read_text()) if FILE.exists() else {"configs": {}, "remat": []}
    only = [] if ONLY.value == ["none"] else ONLY.value or CONFIGS
    for config in only:
        if config not in CONFIGS:
            raise UserError(f"{config} is not a config; there are: {', '.join(CONFIGS)}")
    versions = {name: metadata.version(name) for name in ("jax", "libtpu")} if only else plans.get("versions")
    for config in only:
        print(f"compiling {config} for {topology_of(config)}", file=sys.stderr, flush=True)
        plans["configs"][config] = compiled(config)
        plans.setdefault("digests", {})[config] = planning.digest(get_config(config))
        if config == REMAT_CONFIG:
            plans["remat"] = compiled(config, "--nosampler", f"--compare={','.join(REMAT)}")
        plans["versions"] = versions
        FILE.write_text(json.dumps(plans, indent=1) + "\n")
    PAGE.write_text(page(plans))
    return 0


def page(plans: dict[str, Any]) -> str:
    """The page as Markdown."""
    versions = plans["versions"]
    lines = [
        "# What the configs need on TPUs",
        "",
        "Compiled by the TPU compiler on a machine without a TPU, for the slice that each config's docstring names",
        f"(jax {versions['jax']}, libtpu {versions['libtpu']}). Written by `python -m benchmarks.tpu_plans`; one",
        "config by itself, with more detail, and other slices and strategies: `python -m experiments.plan`. Memory is",
        "the compiler's; operations, traffic and what is sent are counted from the compiled program. Times are",
        "rooflines, what the published peaks allow at most: an estimate, and a lower bound.",
        "",
        "## Train steps",
        "",
        *table(
            {
                "config": lambda name, p: name.removeprefix("configs/"),
                "slice": lambda name, p: p["topology"],
                "batch": lambda name, p: f"{p['batch_size']:,}",
                **COMMON,
                "time of a step": lambda name, p: milliseconds(p),
                "steps": lambda name, p: f"{p['steps']:,}",
                "whole schedule": lambda name, p: f"{duration(p)}, {p['chip_hours']:,.2g} chip-hours",
            },
            [(name, found) for name in CONFIGS for found in plans["configs"].get(name, [])[:1]],
        ),
        "",
        "## Samplers",
        "",
        *table(
            {
                "config": lambda name, p: name.removeprefix("configs/"),
                "slice": lambda name, p: p["topology"],
                "images": lambda name, p: f"{p['batch_size']:,}",
                **COMMON,
                "time of a run": lambda name, p: milliseconds(p),
            },
            [(name, found) for name in CONFIGS for found in plans["configs"].get(name, [])[1:]],
        ),
        "",
        "## Keeping or recomputing: DiT-XL/2",
        "",
        f"`{REMAT_CONFIG}` on {topology_of(REMAT_CONFIG)}, parameters and optimizer sharded over all chips. The blocks",
        "are one `scan` over depth. `remat` keeps the input of a block, `remat:dots` also the results of its matrix",
        "products.",
        "",
        *table(
            {
                "strategy": lambda name, p: name,
                **COMMON,
                "temporaries": lambda name, p: gigabytes(p["memory"]["temporaries"]),
                "operations": lambda name, p: f"{p['compiled_flops'] / p['model_flops']:.2f} x the model's",
                "time of a step": lambda name, p: milliseconds(p),
            },
            [(found["strategy"], found) for found in plans["remat"]],
        ),
    ]
    missing = [config for config in LATER if config not in plans["configs"]]
    if missing:
        names = ", ".join(f"`{config.removeprefix('configs/')}`" for config in missing)
        lines += [
            "",
            "## Not compiled yet",
            "",
            f"{names}: networks of published sizes, which take the compiler",
            "longer than this page was given. `python -m experiments.plan --config=configs/finetune/sdxl.py",
            "--topology=v5p:2x2x4` compiles one; their docstrings say what parameters, moments and averages take.",
        ]
    return "\n".join(lines) + "\n"


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def duration(plan: dict[str, Any]) -> str:
    """The time of the whole schedule in a suitable unit."""
    seconds = 86_400 * plan["days"]
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


def operations(number: float) -> str:
    return f"{number / 1e12:,.1f} TFLOP" if number >= 1e12 else f"{number / 1e9:,.4g} GFLOP"


def milliseconds(plan: dict[str, Any]) -> str:
    time = 1e3 * plan["seconds"]
    return f"{time:,.0f} ms ({plan['bound']})" if time >= 100 else f"{time:.3g} ms ({plan['bound']})" if time else ""


def sent(plan: dict[str, Any]) -> float:
    """Bytes that a device sends in one run."""
    return sum(one["sent_bytes"] for one in plan["collectives"].values())


COMMON = {
    "fits": lambda name, p: Cell("yes") if p["fits"] else Cell("no", strong=True),
    "memory per device": lambda name, p: f"{gigabytes(p['memory']['peak'])} of {p['limit'] / 1e9:.0f}",
    "operations per image": lambda name, p: operations(p["compiled_flops"]),
    "sent per device": lambda name, p: gigabytes(sent(p)),
}


def table(columns: dict[str, Any], rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """A table in Markdown."""
    return Table.of(columns, [[cell(name, plan) for cell in columns.values()] for name, plan in rows]).markdown()


if __name__ == "__main__":
    cli.run(main)
