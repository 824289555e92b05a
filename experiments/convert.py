"""Published weights to a workdir that can be sampled, evaluated and trained further, and back.

    python -m experiments.convert --source=FOLDER --target=runs/name                      # a diffusers folder
    python -m experiments.convert --source=DiT-XL-2-256x256.pt --target=runs/dit \\
        --config=configs/papers/dit_xl2_imagenet256.py                                   # the authors' file
    python -m experiments.convert --source=edm-cifar10-32x32-cond-vp.pkl --target=runs/edm \\
        --config=configs/papers/edm_cifar10.py
    python -m experiments.convert --source=runs/dit --target=weights.safetensors --format=dit    # a run's average, out

A file of PyTorch is read by an unpickler that can build tensors only: nothing in it is run. The names of the tensors
are recognised; --format says them where two formats share all names. Nothing is written unless every tensor fits. To
convert and to sample, a data set of TFDS need not be prepared.
"""

from experiments import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
SOURCE = FLAGS.path("source", None, "a file of weights, a diffusers folder, or the workdir of a run")
TARGET = FLAGS.path("target", None, "a new workdir, or a .safetensors file to write")
FORMAT = FLAGS.string("format", None, "whose names, a wrong one lists all; recognised on reading")
ENTRY = FLAGS.string("entry", None, "which weights of a file that has several: ema, model ...")
EMA = FLAGS.string("ema", None, "of a workdir: which average of the parameters, or 'params'")
cli.begin(FLAGS)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data, models, weights
from diffusion_jax.errors import UserError
from diffusion_jax.systems import NETWORK
from experiments import workdir
from experiments.restoring import open_checkpoints, restore_params
from experiments.wiring import Experiment


def main(argv: Sequence[str]) -> None:
    if not SOURCE.value or not TARGET.value:
        raise UserError("give --source=... and --target=..., see --help")
    if FORMAT.value and FORMAT.value not in weights.FORMATS:
        raise UserError(f"no format {FORMAT.value!r}; there are: {', '.join(weights.FORMATS)}")
    source, target = Path(SOURCE.value), Path(TARGET.value)
    if not source.exists():
        raise UserError(f"--source: no file or folder {source}")
    if target.suffix == ".safetensors":
        export(source, target)
    else:
        convert(source, target)


def export(source: Path, target: Path) -> None:
    """A run's parameters as tensors under the names of `--format`."""
    experiment, params, origin = restore_params(source, ema=EMA.value)
    maps = weights.weight_map(FORMAT.value or "diffusion_jax", experiment.network)
    state = maps.state(jax.device_get(params[NETWORK]))
    cli.writable_directory(target.parent)
    weights.write_state(target, state, {"format": FORMAT.value or "diffusion_jax", "step": str(origin["step"])})
    print(f"{len(state)} tensors of step {origin['step']} ({origin['parameters']}): {target}")


def convert(source: Path, target: Path) -> None:
    """A workdir with one checkpoint, of step 0, in which all averages are the given weights."""
    if (target / "config.json").exists():
        raise UserError(f"{target} has a run already: give another --target")
    form = FORMAT.value
    if CONFIG.value is not None:
        config = CONFIG.value
        info = Experiment.planned(config).info
    else:
        described = weights.read_config(source) if source.is_dir() else None
        if described is None:
            raise UserError(
                "only a diffusers folder says what network it is of: give --config=..., a config with that network"
            )
        spec, form = weights.network_spec(described)
        config, info = described_run(spec, str(source))
    experiment = Experiment(config, stored_info=info)
    state = weights.read_state(source, entry=ENTRY.value)
    form = form or weights.find_format(experiment.network, state)
    shapes = models.parameter_shapes(experiment.network)
    params = {NETWORK: weights.weight_map(form, experiment.network).params(state, shapes)}
    cli.writable_directory(target)
    workdir.claim(target, config, info)
    save(experiment, params, target)
    count = models.count_parameters(experiment.network)
    workdir.write_environment(target, num_parameters=count)
    print(f"{len(state)} tensors ({form}), {count:,} parameters: {target}")
    print(f"sample:  python -m experiments.sample --workdir={target} --num_samples=16")


def save(experiment: Experiment, params: Any, target: Path) -> None:
    """The state before the first step, with these parameters."""
    state = experiment.first_state()

    def placed(like: Any) -> Any:
        own = {name: like[name] for name in params}
        return {**like, **jax.tree.map(lambda x, old: jax.device_put(jnp.asarray(x), old.sharding), params, own)}

    state = state.replace(
        params=placed(state.params),
        ema={name: placed(average) for name, average in state.ema.items()},
        target=None if state.target is None else placed(state.target),
    )
    checkpointer = open_checkpoints(experiment, target)
    record = {"branch": None, "window": [], "config": workdir.to_json(experiment.config), "position": 0}
    checkpointer.save(0, state, record, {})
    checkpointer.close()


def described_run(spec: dict[str, Any], name: str) -> tuple[ConfigDict, data.DatasetInfo]:
    """A config around a network that came without one: DDPM's chain, with the data unknown but for its shape."""
    fields = dict(spec)
    size, channels, classes = (fields.pop(field) for field in ("image_size", "image_channels", "num_classes"))
    info = data.DatasetInfo(
        name=f"converted from {name}",
        split="none",
        num_examples=0,
        image_shape=(size, size, channels),
        num_classes=classes,
        class_names=tuple(str(number) for number in range(classes)),
        dtype="uint8" if channels in (1, 3) else "float32",
    )
    chain = {"num_steps": 1000}
    return ConfigDict(
        {
            "seed": 0,
            "data": {"dataset": "converted", "split": "none", "validation_split": "", "data_dir": "", "flip": False},
            "model": fields,
            "schedule": {"name": "ddpm_linear", **chain, "beta_start": 1e-4, "beta_end": 0.02},
            "prediction": {"name": "epsilon"},
            "time_input": {"name": "discrete_index", **chain},
            "time_sampler": {"name": "discrete_uniform", **chain},
            "objective": {"name": "denoising", "weighting": "uniform"},
            "train": {
                "steps": 1,
                "batch_size": np.lcm.reduce([jax.device_count(), 8]).item(),
                "accumulation": 1,
                "dtype": "float32",
                "class_conditional": bool(classes),
                "conditioning_dropout": 0.1 if classes and spec["name"] == "dit" else 0.0,
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-4,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "warmup_steps": 0,
                "decay": "constant",
                "decay_steps": 0,
                "clip_norm": 1.0,
            },
            "ema": {"decays": (0.9999,), "half_lives": (), "widths": (), "ramp_up_ratio": 0.05},
            "parallel": {"strategy": "jit", "data": -1, "fsdp": 1, "tensor": 1, "context": 1, "rules": ()},
            "sampling": {
                "sampler": {"name": "ddim"},
                "grid": {"name": "uniform"},
                "steps": 50,
                "guidance_scale": 1.0,
                "guidance_interval": (),
                "clip_x0": False,
                "ema": "",
                "batch_size": 64,
            },
            "log": {
                "every": 100,
                "validate_every": 0,
                "validation_examples": 0,
                "sample_every": 0,
                "num_samples": 16,
            },
            "checkpoint": {
                "directory": "",
                "every": 1000,
                "keep_last": 2,
                "keep_best": 0,
                "best_metric": "validation_loss",
                "best_mode": "min",
            },
            "evaluation": {"metrics": (), "num_samples": 64, "max_real": 50_000},
        }
    ), info


if __name__ == "__main__":
    cli.run(main)
