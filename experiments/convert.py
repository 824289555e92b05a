"""Published weights to a workdir that can be sampled, evaluated and trained further, and back.

    python -m experiments.convert --source=FOLDER --target=runs/name                      # a diffusers folder
    python -m experiments.convert --source=DiT-XL-2-256x256.pt --target=runs/dit \\
        --config=configs/papers/dit_xl2_imagenet256.py                                   # the authors' file
    python -m experiments.convert --source=edm-cifar10-32x32-cond-vp.pkl --target=runs/edm \\
        --config=configs/papers/edm_cifar10.py
    python -m experiments.convert --source=runs/dit --target=weights.safetensors --format=dit    # a run's average, out
    python -m experiments.convert --source=runs/dit --target=folder --format=diffusers_dit       # a folder of diffusers
    python -m experiments.convert --source=stable-diffusion-v1-5 --target=models/sd15   # a text-to-image pipeline
    python -m experiments.convert --source=v1-5-pruned.safetensors --target=models/sd15 --model_config=FOLDER
    python -m experiments.convert --source=models/sd15 --target=sd15.safetensors        # one file, authors' names
    python -m experiments.convert --source=runs/style --target=style.safetensors       # an adapter's run
    python -m experiments.convert --source=runs/edges --target=edges                   # a ControlNet's
    python -m experiments.convert --source=runs/sd15 --target=folder    # a run that started from a published folder
    python -m experiments.convert --source=hf://OWNER/NAME --target=models/name    # fetched from the Hugging Face hub
    python -m experiments.convert --source=runs/dit --target=folder --format=diffusers_dit --push_to_hub=OWNER/NAME

An unpickler that can only build tensors reads PyTorch's files, so no code in them runs. If a file holds averages of the
parameters and raw weights, the average is taken; --entry names another set, and a wrong name lists all. The names of
the tensors determine the format; --format states it if two formats share all names. A folder's scheduler becomes the
run's schedule, prediction and sampler. Nothing is written unless every tensor fits. A data set of TFDS need not be
prepared for converting and sampling.

A text-to-image pipeline, with its text encoders and its first stage, becomes such a folder again once all of it has
been read here: draw with it by experiments.generate, train from it with --config.init.folder.

--push_to_hub puts what was written of a run into a repository, which is private when it is new, with a card made from
the run's report.
"""

from experiments.ground import cli

FLAGS = cli.Flags(__name__, __doc__)
CONFIG = FLAGS.config()
SOURCE = FLAGS.path("source", None, "a file of weights, a diffusers folder, the workdir of a run, or hf://OWNER/NAME")
TARGET = FLAGS.path("target", None, "a new workdir; for a run, a .safetensors file or a new folder to write")
FORMAT = FLAGS.string("format", None, "naming scheme of the weights; a wrong one lists all; recognised on reading")
ENTRY = FLAGS.string("entry", None, "which weights of a file with several, such as ema; a wrong one lists them")
EMA = FLAGS.string("ema", None, "average of a run's parameters, or 'params' for none")
MODEL_CONFIG = FLAGS.path("model_config", None, "folder of the same model, for a model in one file")
PUSH = FLAGS.string("push_to_hub", None, "repository to push a run to", check=cli.repository, allowed="OWNER/NAME")
cli.begin(FLAGS)

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data, models, weights
from diffusion_jax.errors import UserError
from diffusion_jax.files import read_json, replace_file
from diffusion_jax.pipelines.adapting import targets_of_model
from diffusion_jax.pipelines.embeddings import write_word
from diffusion_jax.pipelines.model import save_as
from diffusion_jax.pipelines.parts import INDEX, NETWORKS, read_parts
from diffusion_jax.pipelines.single_file import is_single_file, read_single_file, write_single_file
from diffusion_jax.pipelines.steering import save_steering
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import ADAPTERS, NETWORK, within
from diffusion_jax.weights.components import COMPONENTS
from diffusion_jax.weights.lora_writing import write_lora
from experiments.building.restoring import describe_run, open_checkpoints, restore_params
from experiments.building.wiring import Experiment
from experiments.ground import workdir
from experiments.ground.fields import runner
from experiments.reports.summary import model_card
from experiments.services import hub


def main(argv: Sequence[str]) -> None:
    if not SOURCE.value or not TARGET.value:
        raise UserError("give --source=... and --target=..., see --help")
    if FORMAT.value and FORMAT.value not in weights.FORMATS:
        raise UserError(f"no format {FORMAT.value!r}; there are: {', '.join(weights.FORMATS)}")
    is_remote = hub.is_remote(SOURCE.value)
    source, target = hub.fetched(SOURCE.value) if is_remote else Path(SOURCE.value), Path(TARGET.value)
    if not os.path.lexists(source):
        raise UserError(f"--source: no file or folder {source}")
    is_run = (source / "data.json").is_file() and (source / "config.json").is_file()
    if PUSH.value and not is_run:
        raise UserError(
            f"--push_to_hub needs a run, whose report becomes the card; {source} is not a run: leave it out"
        )
    if is_run:
        if target.exists() and target.suffix == ".safetensors":
            raise UserError(f"--target={target} is there already: give a new file")
        _unused("a run's weights are written", entry=ENTRY.value, config=CONFIG.value)
        if PUSH.value:
            hub.require("--push_to_hub")
        export(source, target)
        if PUSH.value:
            push(source, target)
    elif is_text_to_image(source) or (CONFIG.value is None and is_single_file(source)):
        given = {"config": CONFIG.value, "format": FORMAT.value, "entry": ENTRY.value, "ema": EMA.value}
        _unused("a text-to-image pipeline is read", **given)
        convert_pipeline(source, target)
    elif target.suffix == ".safetensors":
        raise UserError(
            f"--source: {source} is neither the workdir of a run nor a text-to-image pipeline, and only these "
            "are written as files"
        )
    else:
        _unused("weights of others are read", ema=EMA.value)
        convert(source, target)


def _unused(doing: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(f"--{name} has no meaning where {doing}: leave it out")


def is_text_to_image(source: Path) -> bool:
    """Whether a folder is a pipeline for text-to-image."""
    if not (source / INDEX).is_file():
        return False
    index = read_json(source / INDEX)
    named = [value for name, value in index.items() if name in NETWORKS and isinstance(value, list) and len(value) == 2]
    return any(value[1] in COMPONENTS for value in named if isinstance(value[1], str))


def convert_pipeline(source: Path, target: Path) -> None:
    """Write a pipeline as a new folder or file, after every tensor has been checked against its network."""
    if target.exists():
        raise UserError(f"--target={target} is there already: give a new folder or file")
    cli.writable_directory(target.parent)
    if source.is_dir():
        _unused("a folder is read", model_config=MODEL_CONFIG.value)
        parts, notes = read_parts(source), ()
    else:
        parts, notes = read_single_file(source, config=MODEL_CONFIG.value)
    for note in notes:
        print(f"note: {note}")
    count = sum(sum(leaf.size for leaf in jax.tree.leaves(part.params)) for part in parts.models.values())
    what = f"{len(parts.models)} networks of {count:,} parameters"
    if target.suffix == ".safetensors":
        print(f"{what}, in the layout of {write_single_file(parts, target)}: {target}")
        return
    parts.save(target)
    print(f"{what}: {target}")
    print(cli.spoken(f'draw with it:    python -m experiments.generate --model={target} --prompt="..."'))
    print(f"train from it:   a config of configs/finetune/, such as sd15.py, with --config.init.folder={target}")


def export(source: Path, target: Path) -> None:
    """Write a run's parameters as tensors under the names of `--format`; diffusers' formats also get the files that
    build the network."""
    experiment, params, origin = restore_params(source, ema=EMA.value)
    if experiment.has_base:
        return export_from_base(experiment, jax.device_get(params), origin, target)
    form = FORMAT.value or "diffusion_jax"
    of_diffusers = form.startswith("diffusers_")
    if target.suffix != ".safetensors" and not of_diffusers:
        raise UserError(f"--target={target} is not a .safetensors file; only the formats of diffusers are folders")
    described = weights.describe(experiment.network) if of_diffusers else None
    state = weights.weight_map(form, experiment.network).state(jax.device_get(params[NETWORK]))
    file = target if target.suffix == ".safetensors" else target / f"{weights.FOLDER_STEM}.safetensors"
    if described is not None:
        for name in ("config.json", "scheduler_config.json", file.name):
            if (file.parent / name).exists():
                raise UserError(f"{file.parent} has a {name} already: give --target={file.parent}/NAME, a new folder")
    cli.writable_directory(file.parent)
    weights.write_state(file, state, {"format": "pt", "names": form, "step": str(origin["step"])})
    print(f"{len(state)} tensors of step {origin['step']} ({origin['parameters']}): {file}")
    if described is not None:
        describe(experiment, described, file.parent)
        if file.stem != weights.FOLDER_STEM:
            print(f"diffusers looks for {weights.FOLDER_STEM}.safetensors: rename it")


def push(source: Path, target: Path) -> None:
    """What was written of a run to the hub: with its config, its last samples, and a card made from its report."""
    written = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {
        path.name if path == target else path.relative_to(target).as_posix(): path for path in written
    }
    files = {name: path for name, path in files.items() if not name.startswith(".")}
    files["run_config.json"] = source / "config.json"
    if (source / "samples" / "final.png").is_file():
        files["samples.png"] = source / "samples" / "final.png"
    card = model_card(source, PUSH.value, list(files))
    print(f"pushed: {hub.push(PUSH.value, {**files, 'README.md': card.encode()}, f'Weights of {source.name}')}")


def export_from_base(experiment: Any, params: Any, origin: Mapping[str, Any], target: Path) -> None:
    """Export from a run that started from a model: its adapter, as a LoRA file under PEFT's names, the folder of a
    ControlNet or the file of an IP-Adapter; or the whole model, as a published folder like the one it started from."""
    _unused("what comes from a published folder is written, under its own names", format=FORMAT.value)
    base, adapters = Path(experiment.config.init.folder).expanduser(), experiment.model.adapters
    if not (base / INDEX).is_file() and not experiment.model.steering:
        raise UserError(f"{base} is not a published folder, so other programs have no names for what was trained on it")
    step = f"step {origin['step']} ({origin['parameters']})"
    if (target.suffix == ".safetensors") != any(not adapter.is_folder for adapter in adapters):
        raise UserError(
            f"--target={target}: an adapter is written as a .safetensors file, a ControlNet or a model that was "
            "trained as a new folder"
        )
    if target.suffix != ".safetensors" and target.exists():
        raise UserError(f"--target={target} is there already: give a new folder")
    cli.writable_directory(target.parent)
    for adapter in adapters:
        own = within(ADAPTERS, params)[adapter.name]
        if not adapter.changes_parameters:
            save_steering(adapter, own, experiment.network, target)
        elif all("rows" in leaves for leaves in own.values()):
            word = f"<{experiment.config.data.trigger or target.stem}>"
            write_word(target, word, own)
            print(f"the word {word} of {step}: {target}")
            continue
        else:
            write_lora(target, own, targets_of_model(base))
        print(f"adapter {adapter.name} of {step}: {target}")
    if not adapters:
        save_as(base, params, target)
        print(f"model of {step}: {target}")


def describe(experiment: Experiment, network: Mapping[str, Any], folder: Path) -> None:
    """Write config.json, and scheduler_config.json if diffusers has the schedule."""
    _write_json(folder / "config.json", network)
    rows = network.get("num_class_embeds")
    if rows and rows > experiment.num_classes:
        print(f"class {experiment.num_classes} there means no class")
    config = experiment.config
    process = config.process.to_dict()
    groups = {name: process[name] for name in ("schedule", "prediction", "time_input")}
    scheduler = weights.describe_sampling(**groups)
    if scheduler is None:
        said = " with ".join(str(group["name"]) for group in groups.values())
        print(f"diffusers has no scheduler of {said}: none is written")
    else:
        _write_json(folder / "scheduler_config.json", scheduler)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    replace_file(file, (json.dumps(value, indent=2) + "\n").encode())


def require_no_run(target: Path) -> None:
    """Raise UserError if a folder is the workdir of a run."""
    if (target / "config.json").exists():
        raise UserError(f"{target} has a run already: give another --target")


def convert(source: Path, target: Path) -> None:
    """Write a workdir with one checkpoint at step 0, in which all averages equal the given weights."""
    require_no_run(target)
    form = FORMAT.value
    if CONFIG.value is not None:
        config = CONFIG.value
        info = Experiment.planned(config).info
        lines = differences(config, source)
    else:
        sampling, lines = described_sampling(source)
        spec, own, told = described_network(source)
        form, lines = form or own, [*told, *lines]
        config, info = described_run(spec, str(source), sampling or weights.ASSUMED)
        require_variances(config, info)
    experiment = Experiment(config, stored_info=info)
    found = weights.read_weights(source, entry=ENTRY.value)
    form, state = weights.fitted(experiment.network, found.tensors, form=form)
    shapes = models.parameter_shapes(experiment.network)
    params = {NETWORK: weights.weight_map(form, experiment.network).params(state, shapes)}
    cli.writable_directory(target)
    count = models.count_parameters(experiment.network)
    with workdir.lock(target):
        require_no_run(target)  # which another process may have written by now
        workdir.claim(target, config, info)
        describe_run(experiment, target)
        save(experiment, params, target)
        workdir.write_environment(target, num_parameters=count)
    left = len(found.tensors) - len(state)
    for line in (*lines, *found.told(), *([f"{left} tensors of other networks are left out"] if left else [])):
        print(line)
    print(f"{len(state)} tensors ({form}), {count:,} parameters: {target}")
    print(cli.spoken(f"sample:  python -m experiments.sample --workdir={target} --num_samples=16"))


def described_network(source: Path) -> tuple[dict[str, Any], str, list[str]]:
    """The network that a folder's config.json describes, the format of its weights, and lines to print.

    Raises:
      UserError: it describes none, or one that is not supported here.
    """
    file = weights.locate(source).config if source.is_dir() else None
    if file is None:
        raise UserError("only a diffusers folder describes its network: give --config=..., a config with that network")
    described = read_json(file)
    spec, form = weights.network_spec(described, origin=file)
    unknown = weights.unknown_fields(described)
    lines = [f"{file}: {', '.join(unknown)}: no fields of this network; diffusers passes over them, too"]
    return spec, form, lines if unknown else []


def described_sampling(source: Path) -> tuple[weights.Sampling | None, list[str]]:
    """What a folder's scheduler describes, if it has one, and lines to print."""
    file = weights.locate(source).scheduler if source.is_dir() else None
    if file is None:
        return None, list(weights.ASSUMED.notes)
    sampling = weights.read_sampling(read_json(file), origin=file)
    said = ", ".join(str(part["name"]) for part in (sampling.schedule, sampling.prediction, sampling.sampler))
    return sampling, [f"schedule, prediction and sampler of {file}: {said}", *sampling.notes]


def differences(config: ConfigDict, source: Path) -> list[str]:
    """Lines about differences between a folder's scheduler and `--config`, which is used."""
    lines = []
    try:
        sampling, _ = described_sampling(source)
    except UserError as error:
        return [f"--config is followed, and not the folder's scheduler: {error}"]
    if sampling is None:
        return []
    for name in ("schedule", "prediction"):
        there, here = getattr(sampling, name), config.process[name].to_dict()
        if any(here.get(field, value) != value for field, value in there.items()):
            lines.append(f"the folder's scheduler says {name}={there}; --config says {here}, and is followed")
    return lines


def require_variances(config: ConfigDict, info: data.DatasetInfo) -> None:
    """Refuse a scheduler that takes variances from a network without them."""
    channels, model = info.spec.shape[-1], config.model
    has_variances = model.get("learn_sigma", model.get("out_channels") == 2 * channels)
    if config.sampling.sampler.get("variance") == "learned" and not has_variances:
        raise UserError(
            "the folder's scheduler has variance_type='learned_range', but its network predicts no variances: set "
            "variance_type in scheduler_config.json to fixed_small or fixed_large"
        )


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
    checkpointer.save(0, state.saved, record, {})
    checkpointer.close()


def described_run(spec: dict[str, Any], name: str, sampling: weights.Sampling) -> tuple[ConfigDict, data.DatasetInfo]:
    """A config for a network that came without one, with unknown data of a known shape."""
    fields = dict(spec)
    size, channels, classes = (fields.pop(field) for field in ("image_size", "image_channels", "num_classes"))
    info = data.DatasetInfo(
        name=f"converted from {name}",
        split="none",
        num_examples=0,
        spec=DataSpec(kind="pixels" if channels in (1, 3) else "latents", shape=(size, size, channels)),
        num_classes=classes,
        class_names=tuple(str(number) for number in range(classes)),
    )
    config = runner()
    config.update(
        data=dict(dataset="converted", split="none"),
        model=fields,
        process=dict(
            name="gaussian",
            schedule=sampling.schedule,
            prediction=sampling.prediction,
            time_input=sampling.time_input,
        ),
        time_sampler=sampling.time_sampler,
        objective=dict(name="denoising", weighting="uniform"),
        train=dict(steps=1, batch_size=np.lcm.reduce([jax.device_count(), 8]).item(), class_conditional=bool(classes)),
        optimizer=dict(name="adam", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, clip_norm=1.0),
        ema=dict(decays=(0.9999,)),
        sampling=dict(steps=sampling.steps, clip_x0=sampling.clip_x0, batch_size=64),
        log=dict(num_samples=16),
        checkpoint=dict(every=1_000),
    )
    config.train.conditioning_dropout = 0.1 if classes and models.MODELS.build(spec).published_without_class else 0.0
    config.sampling.sampler, config.sampling.grid = ConfigDict(sampling.sampler), ConfigDict(sampling.grid)
    return config, info


if __name__ == "__main__":
    cli.run(main)
