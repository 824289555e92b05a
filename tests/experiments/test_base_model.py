"""Trainings that start from a model (a published folder, a folder of save_model or a run) and train the model or an
adapter on it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import flatten_dict

import diffusion_jax as dj
from diffusion_jax import systems, training
from diffusion_jax.adapters import forms, merge
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines.adapting import targets_of_model
from diffusion_jax.pipelines.model import save_as
from diffusion_jax.weights.lora import read_lora
from experiments.building.kinds import open_experiment
from experiments.building.restoring import describe_run, open_checkpoints, restore_params
from experiments.building.sources import require_same_sources
from experiments.building.wiring import Experiment
from experiments.ground import workdir
from experiments.ground.config_files import load_config
from tests.processes import assert_same_run, complete, final_state

SD15 = Path(__file__).parents[1] / "golden" / "pipelines" / "sd15"
ON_DIGITS = """
from configs import digits_unet

def get_config():
    config = digits_unet.get_config()
    del config.model, config.process
    config.init.folder = "{folder}"
    config.adapter = type(config)(dict(name="lora", rank=2, targets=("network/.*/time.*/kernel",)))
    config.train.steps, config.train.batch_size = 6, 32
    config.log.update(every=1, validate_every=0, sample_every=0, num_samples=4)
    config.checkpoint.update(every=2, keep_last=9, keep_best=0)
    config.sampling.sampler = type(config)(dict(name="euler"))
    config.sampling.update(steps=2, batch_size=50)
    config.evaluation.update(metrics=(), num_samples=4)
    config.data.data_dir = "{data_dir}"
    return config
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures with captions."""
    folder, draw = tmp_path_factory.mktemp("pictures") / "train", np.random.default_rng(0)
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": ("a red fox", "a blue cat", "one red cat")[i % 3]} for i in range(9)]
    for row in rows:
        PIL.Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def opened(pictures, name="adapt/lora", folder=SD15, **fields):
    """The experiment of a shipped config, reduced in size."""
    config = load_config(f"configs/{name}.py")
    config.init.folder = str(folder)
    config.data.update(dataset=f"folder:{pictures}", image_size=32, num_workers=0)
    config.train.update(dtype="float32", batch_size=8, steps=4)
    config.parallel.update(data=-1, fsdp=1)
    with config.unlocked():
        for field, value in fields.items():
            group, inner = field.split("__")
            config[group][inner] = value
    return open_experiment(config, devices=(jax.devices()[0],))


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """An adapter on the published folder after 4 steps, its initial value, and its workdir; a run resumed after 2 steps
    ends with the same bits."""
    directory, experiment = tmp_path_factory.mktemp("dora") / "run", opened(pictures, adapter__magnitude=True)
    experiment.check()
    directory.mkdir()
    workdir.claim(directory, experiment.config, experiment.info)
    describe_run(experiment, directory)
    state = experiment.first_state()
    first = jax.device_get(state.params)
    frozen, known = experiment.read_frozen()
    step = jax.jit(experiment.layout.placed(experiment.train_step()))

    def run(state, start):
        batches = experiment.pipeline.batches(start_step=start)
        for number in range(start, 4):
            if number == 2 and start == 0:
                save(state, 2)
            state, metrics = step(state, experiment.layout.place_batch(next(batches)))
            assert np.isfinite(metrics["loss"])
        return state

    def save(state, at):
        record = {"config": workdir.to_json(experiment.config), "position": at * 8, "window": [], "branch": None}
        checkpointer = open_checkpoints(experiment, directory)
        checkpointer.save(at, state.saved, {**record, "frozen": known}, {})
        checkpointer.close()

    last = run(state.replace(frozen=frozen), 0)
    save(last, 4)
    checkpointer = open_checkpoints(experiment, directory, read_only=True)
    middle, record = checkpointer.restore(2, experiment.abstract_state.saved)
    checkpointer.close()
    require_same_sources(record["frozen"], known, directory)
    again = run(training.TrainState(**middle, frozen=frozen), 2)
    return directory, first, last, again


@pytest.mark.slow
def test_an_adapter_begins_as_nothing_with_the_magnitudes_of_the_model(trained):
    _, first, _, _ = trained
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(dj.load_model(SD15)[1]).items()}
    assert list(first) == ["adapters/lora"]
    for path, leaves in first["adapters/lora"].items():
        assert path.startswith("network/")
        np.testing.assert_array_equal(leaves["up"], 0)
        np.testing.assert_allclose(leaves["magnitude"], forms.lengths(jnp.asarray(flat[path])), rtol=1e-6)


@pytest.mark.slow
def test_training_changes_the_adapter_alone(trained):
    directory, first, last, _ = trained
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), first, dict(last.params))
    for leaves in changed["adapters/lora"].values():
        assert leaves == {"down": True, "up": True, "magnitude": True, forms.SCALE: False}
    _, base = dj.load_model(SD15)
    assert set(last.frozen) == set(base) == {"network", "codec", "conditioning/context"}
    for name, group in base.items():
        assert systems.fingerprint(last.frozen[name]) == systems.fingerprint(group)
    saved, record = final_state(directory, 4)
    assert set(saved["params"]) == {"adapters/lora"}
    assert set(saved["ema"]["decay_0.99"]) == {"adapters/lora"}
    assert record["frozen"]["network"]["source"] == str(SD15)


def test_resumed_it_is_the_same_to_the_bit(trained):
    _, _, last, again = trained
    jax.tree.map(np.testing.assert_array_equal, dict(last.saved), dict(again.saved))


def test_the_run_is_a_model_with_its_adapter(trained):
    directory, _, last, _ = trained
    model, params = dj.load_model(directory, average="params")
    jax.tree.map(np.testing.assert_array_equal, params, last.whole(dict(last.params)))
    assert [one.name for one in model.adapters] == ["lora"]
    experiment, restored, _ = restore_params(directory, ema="params")
    assert experiment.model == model
    assert systems.fingerprint(restored) == systems.fingerprint(params)


def test_another_model_in_its_place_is_refused(trained, tmp_path):
    """A run with an adapter identifies its base model by a fingerprint of the parameters."""
    directory, _, _, _ = trained
    run, other = tmp_path / "run", tmp_path / "sd15"
    shutil.copytree(directory, run)
    model, params = dj.load_model(SD15)
    params["network"]["conv_in"]["bias"] = params["network"]["conv_in"]["bias"] + 1
    systems.save_model(other, model, params)
    config = json.loads((run / "config.json").read_text())
    config["init"]["folder"] = str(other)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"was trained with network of .*sd15; network of .*sd15 is not the same"):
        restore_params(run)


def test_the_adapter_as_a_file_gives_the_same_model(trained, command, tmp_path):
    directory, _, last, _ = trained
    file, own = tmp_path / "style.safetensors", last.params["adapters/lora"]
    command.run("convert", f"--source={directory}", f"--target={file}", "--ema=params")
    _, base = dj.load_model(SD15)
    read = read_lora(file, targets_of_model(SD15))
    assert set(read) == set(own)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merge(base, [read]), merge(base, [dict(own)])
    )
    line = command.fails("convert", f"--source={directory}", f"--target={tmp_path / 'folder'}")
    assert "an adapter is written as a .safetensors file" in line


def test_a_trained_model_as_a_published_folder(tmp_path):
    _, params = dj.load_model(SD15)
    params["network"]["conv_in"]["bias"] = params["network"]["conv_in"]["bias"] + 1
    save_as(SD15, params, tmp_path / "folder")
    assert systems.fingerprint(dj.load_model(tmp_path / "folder")[1]) == systems.fingerprint(params)


def test_all_of_a_model_can_be_trained(pictures):
    """The network starts from the folder's weights and is trained; text encoder and first stage are frozen."""
    experiment = opened(pictures, "finetune/sd15")
    experiment.check()
    state = experiment.first_state()
    _, base = dj.load_model(SD15)
    for tree in (state.params, state.ema["decay_0.9999"]):
        assert list(tree) == ["network"]
        assert systems.fingerprint(tree["network"]) == systems.fingerprint(base["network"])
    assert set(experiment.frozen_groups) == {"codec", "conditioning/context"}
    after, metrics = jax.eval_shape(experiment.train_step(), experiment.abstract_state, experiment.abstract_batch(8))
    assert jax.tree.structure(after) == jax.tree.structure(experiment.abstract_state)
    assert "loss" in metrics
    assert dict(experiment.model.conditioning.dropout) == {("context",): 0.1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init__folder": "/nowhere"}, "there is no model in /nowhere: no such file or folder"),
        (
            {"data__image_size": 16},
            r"diffuses pixels \[32, 32, 3\], but the data is pixels \[16, 16, 3\]: set data.image_size",
        ),
        (
            {"adapter__targets": ("network/nothing",)},
            "no parameter matches 'network/nothing', which an adapter should change",
        ),
        ({"adapter__targets": (".*/qkv/kernel",)}, "of the first stage, which is not adapted"),
        ({"adapter__name": "lara"}, "unknown adapter 'lara'; did you mean 'lora'"),
        ({"train__class_conditional": True}, "is told no classes"),
        ({"train__trained": ("nothing",)}, "no group of parameters is 'nothing'"),
        ({"sampling__clip_x0": True}, "latents have no such bounds"),
        ({"teacher__workdir": "runs/x"}, "teacher.workdir: init.folder starts from the model in"),
    ],
)
def test_what_does_not_fit_is_one_line(pictures, fields, message):
    with pytest.raises(UserError, match=message):
        opened(pictures, **fields).check()


def test_a_model_beside_the_model_is_refused(pictures):
    experiment = opened(pictures)
    with experiment.config.unlocked():
        experiment.config.model = {"name": "dit"}
    with pytest.raises(UserError, match=r"^model: init\.folder starts from the model in .* leave them out"):
        experiment.check()


def test_an_adapter_without_a_model_is_refused():
    config = load_config("configs/digits_unet.py")
    with config.unlocked():
        config.adapter = {"name": "lora"}
    with pytest.raises(UserError, match=r"adapter changes an existing model: name it with init\.folder"):
        open_experiment(config).check()


def test_commands_that_build_models_by_their_config_say_so(pictures):
    with pytest.raises(UserError, match=r"a config with init\.folder starts from a model, but this command does not"):
        Experiment.planned(opened(pictures).config)


@pytest.mark.slow  # tested above within one process
def test_an_adapter_of_a_run_killed_and_resumed(finished, command, tmp_path):
    """The commands train an adapter on the digits run: the kill changes no bit, and the adapted run is a base model."""
    config = tmp_path / "config.py"
    text = ON_DIGITS.replace("{folder}", str(finished[0])).replace("{data_dir}", str(command.data_dir))
    config.write_text(text)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out, _ = command.run("train", f"--config={config}", f"--workdir={whole}")
    assert f"lora on {finished[0]}: " in out
    process = command.start("train", f"--config={config}", f"--workdir={killed}")
    assert command.kill_when(process, lambda: complete(killed))
    process.communicate()
    out, _ = command.run("train", f"--config={config}", f"--workdir={killed}")
    assert "resuming" in out
    assert_same_run(killed, whole, step=6)
    command.run("sample", f"--workdir={killed}", "--num_samples=4", f"--out={tmp_path}/drawn.npz")
    assert np.load(tmp_path / "drawn.npz")["images"].shape == (4, 8, 8, 1)
    stacked = open_experiment(load_config(str(config)))
    stacked.config.init.folder = str(whole)  # an adapter on an adapted run: the base includes the first adapter
    again = open_experiment(stacked.config)
    changed = [
        path
        for path, leaf in flatten_dict(again.base.group("network"), sep="/").items()
        if np.any(np.asarray(leaf) != np.asarray(flatten_dict(stacked.base.group("network"), sep="/")[path]))
    ]
    assert changed
    assert all("time" in path for path in changed)
    again.check()
