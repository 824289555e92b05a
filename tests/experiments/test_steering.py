"""Trainings of picture adapters: a ControlNet on scenes, an IP-Adapter on captioned pictures."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import diffusion_jax as dj
from diffusion_jax import systems, training
from diffusion_jax.adapters import count
from diffusion_jax.errors import UserError
from diffusion_jax.pipelines import Pipeline
from diffusion_jax.pipelines.steering import save_steering
from diffusion_jax.weights.components import read_part
from diffusion_jax.weights.ip_adapter import read_ip_adapter
from experiments.building.kinds import open_experiment
from experiments.building.restoring import describe_run, open_checkpoints, restore_params
from experiments.evaluating.asked import asked_for
from experiments.ground import workdir
from experiments.ground.config_files import load_config

GOLDEN = Path(__file__).parents[1] / "golden" / "pipelines"
SD15, ENCODER = GOLDEN / "sd15", GOLDEN / "adapters" / "ip_image_encoder"
CALL = {"num_inference_steps": 1, "height": 32, "width": 32, "output_type": "latent", "guidance_scale": 1.0, "seed": 3}


def opened(name, **fields):
    """The experiment of a shipped config, reduced, on scenes of 32 pixels."""
    config = load_config(f"configs/adapt/{name}.py")
    config.init.folder = str(SD15)
    config.data.update(dataset="scenes", image_size=None, crop="none")
    config.train.update(dtype="float32", batch_size=4, steps=4)
    config.optimizer.update(learning_rate=1e-2, weight_decay=0.0)  # only gradients move parameters
    options = {"size": 32, "num_examples": 16, "num_test": 8}
    with config.unlocked():
        config.data.options = options | ({"control": "edges"} if name == "controlnet" else {})
        if name == "ip_adapter":
            config.adapter.image_encoder = str(ENCODER)
        for field, value in fields.items():
            group, inner = field.split("__")
            config[group][inner] = value
    return open_experiment(config, devices=(jax.devices()[0],))


def ran(experiment, directory):
    """The states before each of four steps and after the last; a second run resumed from the saved step 2 ends with the
    same bits."""
    experiment.check()
    directory.mkdir(parents=True)
    workdir.claim(directory, experiment.config, experiment.info)
    describe_run(experiment, directory)
    state = experiment.first_state()
    frozen, known = experiment.read_frozen()
    step = jax.jit(experiment.layout.placed(experiment.train_step()))

    def run(state, start):
        states, batches = [state], experiment.pipeline.batches(start_step=start)
        for _ in range(start, 4):
            state, metrics = step(state, experiment.layout.place_batch(next(batches)))
            assert np.isfinite(metrics["loss"])
            states.append(state)
        return states, float(metrics["loss"])

    states, loss = run(state.replace(frozen=frozen), 0)
    for at in (2, 4):
        record = {"config": workdir.to_json(experiment.config), "position": at * 4, "window": [], "branch": None}
        checkpointer = open_checkpoints(experiment, directory)
        checkpointer.save(at, states[at].saved, {**record, "frozen": known}, {})
        checkpointer.close()
    checkpointer = open_checkpoints(experiment, directory, read_only=True)
    middle, _ = checkpointer.restore(2, experiment.abstract_state.saved)
    checkpointer.close()
    again, loss_again = run(training.TrainState(**middle, frozen=frozen), 2)
    assert loss == loss_again
    jax.tree.map(np.testing.assert_array_equal, dict(states[-1].saved), dict(again[-1].saved))
    return states


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    directory, experiment = tmp_path_factory.mktemp("edges") / "run", opened("controlnet")
    return directory, experiment, ran(experiment, directory)


def changed(old, new):
    """For each path, whether the leaves of two trees differ."""
    flat = zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
    return {jax.tree_util.keystr(path): bool(np.any(np.asarray(a) != np.asarray(b))) for (path, a), b in flat}


@pytest.mark.slow
def test_a_controlnet_learns_in_its_branch_alone(controlled):
    """The zero convolutions move first, then the copy and the last picture convolution, then the rest; the base model
    does not change."""
    _, experiment, states = controlled
    own = [state.params["adapters/controlnet"] for state in states]
    assert list(states[0].params) == ["adapters/controlnet"]
    base = dj.load_model(SD15)[1]
    copied = {name: tree for name, tree in own[0].items() if not name.startswith(("picture_", "zero_"))}
    assert set(copied) < set(base["network"])
    for name, tree in copied.items():
        jax.tree.map(np.testing.assert_array_equal, tree, base["network"][name])
    moved = [{path for path, moved in changed(*pair).items() if moved} for pair in itertools.pairwise(own)]
    assert moved[0] == {path for path in moved[0] if "zero_" in path}
    assert any("picture_out" in path for path in moved[1] - moved[0])
    assert not set(changed(own[0], own[0])) - moved[2], "what stands behind two zeros would never learn"
    for name, group in base.items():
        assert systems.fingerprint(states[-1].frozen[name]) == systems.fingerprint(group)
    assert experiment.conditioning.dropout == {("context",): 0.5}


def test_it_begins_as_the_model_and_then_follows_its_picture(controlled):
    """The fresh adapter equals the model bit for bit; after training, another picture changes the prediction."""
    _, experiment, states = controlled
    model, batch = experiment.model, next(experiment.pipeline.batches())
    x, t = jnp.ones((4, 8, 8, 4)), jnp.full((4,), 0.5)
    other = {**batch, "control": np.roll(batch["control"], 1, axis=0)}

    @jax.jit
    def predicted(params, batch):
        return model.denoiser(params, model.conditions(params, batch, 4))(x, t).x0

    base = experiment.base.model
    params = states[0].whole(dict(states[0].params))
    text = {name: value for name, value in batch.items() if name.startswith("text")}
    plain = jax.jit(lambda p, b: base.denoiser(p, base.conditions(p, b, 4))(x, t).x0)(params, text)
    np.testing.assert_array_equal(predicted(params, batch), plain)
    trained = states[-1].whole(dict(states[-1].params))
    first, second = predicted(trained, batch), predicted(trained, other)
    assert np.abs(first - plain).max() > 1e-3
    assert np.abs(first - second).max() > 1e-4


def test_the_run_is_a_model_and_a_published_controlnet(controlled, tmp_path):
    directory, experiment, states = controlled
    model, params = dj.load_model(directory, average="params")
    assert model == experiment.model == restore_params(directory, ema="params")[0].model
    jax.tree.map(np.testing.assert_array_equal, params, states[-1].whole(dict(states[-1].params)))
    own = states[-1].params["adapters/controlnet"]
    save_steering(experiment.adapter, own, experiment.network, tmp_path / "edges")
    part = read_part(tmp_path / "edges")
    jax.tree.map(np.testing.assert_array_equal, part.params, own)
    assert count(own) == sum(leaf.size for leaf in jax.tree.leaves(part.params))
    with pytest.raises(UserError, match="steers by pictures and is not part of a network's parameters"):
        opened("controlnet", init__folder=str(directory))


@pytest.mark.slow
def test_the_published_controlnet_steers(controlled, tmp_path):
    _, experiment, states = controlled
    own = states[-1].params["adapters/controlnet"]
    save_steering(experiment.adapter, own, experiment.network, tmp_path / "edges")
    pipe = Pipeline.from_pretrained(SD15, controlnet=tmp_path / "edges", scheduler="euler")
    white, black = (PIL.Image.new("RGB", (32, 32), colour) for colour in ("white", "black"))
    drawn = [pipe("a red star", control_image=picture, **CALL).images for picture in (white, black)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4


def test_samples_are_told_the_pictures_of_held_out_examples(controlled):
    _, experiment, _ = controlled
    asked = asked_for(experiment, 4)
    assert asked.fields["control"].shape == (4, 32, 32, 3)
    examples = experiment.pipeline.examples([0, 4, 8, 12])
    np.testing.assert_array_equal(asked.fields["control"], [one["control"] for one in examples])
    assert asked.texts == tuple(one["text"] for one in examples)


@pytest.mark.slow  # tested above within one process
def test_commands_train_write_and_draw(command, tmp_path):
    """The commands train and sample a run, write it as a folder, and steer a picture with it."""
    run, net = tmp_path / "run", tmp_path / "net"
    fields = {
        "init.folder": SD15, "data.options.size": 32, "data.memory_limit": 0, "train.steps": 2, "train.batch_size": 2,
        "train.dtype": "float32", "log.every": 1, "log.num_samples": 2, "log.sample_every": 0, "sampling.steps": 2,
        "sampling.batch_size": 8, "checkpoint.every": 2,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    out, _ = command.run("train", "--config=configs/adapt/controlnet.py", *flags, f"--workdir={run}")
    assert f"controlnet on {SD15}: 78,880 parameters" in out
    assert "a ControlNet or a model that was" in command.fails(
        "convert", f"--source={run}", f"--target={tmp_path / 'net.safetensors'}"
    )
    command.run("convert", f"--source={run}", f"--target={net}")
    flags = ["--steps=1", "--height=16", "--width=16", f"--control={net}:tests/golden/digit.png", "--sampler=euler"]
    command.run("generate", f"--model={SD15}", "--prompt=a star", *flags, f"--out={tmp_path / 'out'}")
    assert (tmp_path / "out" / "00000.png").is_file()
    assert "trained controlnet, which is told a picture" in command.fails(
        "generate", f"--workdir={run}", "--prompt=a star", f"--out={tmp_path / 'out'}"
    )


@pytest.mark.slow
def test_an_ip_adapter_learns_and_is_written_and_read(tmp_path):
    experiment = opened("ip_adapter")
    states = ran(experiment, tmp_path / "run")
    assert list(states[0].params) == ["adapters/ip_adapter"]
    assert set(experiment.frozen_groups) == {"network", "codec", "conditioning/context", "conditioning/reference"}
    own = [state.params["adapters/ip_adapter"] for state in states]
    assert all(changed(own[0], own[1]).values()), "all of it learns from the first step on"
    assert experiment.conditioning.dropout == {
        ("context", "reference"): 0.05, ("reference",): 0.05, ("context",): 0.05,
    }  # fmt: skip
    for name, folder in (("network", SD15 / "unet"), ("conditioning/reference", ENCODER)):
        assert systems.fingerprint(states[-1].frozen[name]) == systems.fingerprint(read_part(folder).params)
    model, params = dj.load_model(tmp_path / "run", average="params")
    assert model == experiment.model
    jax.tree.map(np.testing.assert_array_equal, params, states[-1].whole(dict(states[-1].params)))
    file = tmp_path / "own.safetensors"
    save_steering(experiment.adapter, own[-1], experiment.network, file)
    read = read_ip_adapter(file, experiment.network)
    jax.tree.map(np.testing.assert_array_equal, read.own, own[-1])
    assert read.projection == experiment.adapter.module(experiment.network)
    # For a picture, the runner's model and the pipeline give the network the same conditions.
    example = experiment.pipeline.examples([0])[0]["image"]
    pipe = Pipeline.from_pretrained(SD15, scheduler="euler", image_encoder=ENCODER)
    pipe.load_ip_adapter(file)
    theirs, nothing = pipe.image_prompts.told(PIL.Image.fromarray(example), 1)
    fields = experiment.told_pictures[0].prepare({"image": [example]})
    adapter, tree = experiment.adapter, own[-1]
    of_conditioning = systems.within("conditioning", params)
    for conditions, wanted in (
        (experiment.told_pictures[0](of_conditioning["reference"], fields, 1), theirs),
        (experiment.told_pictures[0].null(of_conditioning["reference"], 1), nothing),
    ):
        ours = adapter.conditions(experiment.network, tree, None, None, conditions)["image_prompt"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, wanted)


def test_an_ip_adapter_of_patches_is_built_for_its_encoder():
    experiment = opened("ip_adapter", adapter__projection="plus", adapter__heads=1, adapter__hidden=16)
    assert experiment.adapter.takes(experiment.network)["reference"].shape == (17, 32)
    shapes = jax.eval_shape(experiment.init_state)
    assert set(shapes.params) == {"adapters/ip_adapter"}
    after, _ = jax.eval_shape(experiment.train_step(), experiment.abstract_state, experiment.abstract_batch(4))
    assert jax.tree.structure(after) == jax.tree.structure(experiment.abstract_state)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "controlnet",
            {"data__options": {"size": 32}},
            "adapter controlnet needs control pictures, but data set",
        ),
        (
            "controlnet",
            {"data__options": {"size": 32, "control": "colours"}},
            "control must be 'none', 'edges', 'masks' or 'depth', it is 'colours'",
        ),
        ("controlnet", {"data__flip": True}, "set data.flip=False"),
        ("controlnet", {"adapter__downscaling": 3}, "downscaling=3 must be a power of two"),
        ("controlnet", {"adapter__embedding_channels": (4, 8)}, "halve the picture 1 times, but downscaling=4"),
        ("controlnet", {"adapter__name": "controlnett"}, "unknown adapter 'controlnett'; did you mean 'controlnet'"),
        ("ip_adapter", {"adapter__image_encoder": ""}, "adapter.image_encoder must name the folder"),
        ("ip_adapter", {"adapter__image_encoder": "/nowhere"}, "/nowhere"),
        ("ip_adapter", {"adapter__image_encoder": str(SD15 / "text_encoder")}, "is not a picture encoder"),
    ],
)
def test_what_does_not_fit_is_one_line(name, fields, message):
    with pytest.raises(UserError, match=message):
        opened(name, **fields).check()


def test_control_pictures_of_a_folder(tmp_path):
    """Control pictures are named in metadata.jsonl; a row without one is refused."""
    folder, draw, rows = tmp_path / "pairs" / "train", np.random.default_rng(1), []
    for number in range(4):
        for kind in ("", "edges-"):
            (folder / "edges").mkdir(parents=True, exist_ok=True)
            name = f"edges/{number}.png" if kind else f"{number}.png"
            PIL.Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name)
        rows.append({"file_name": f"{number}.png", "text": "a star", "control": f"edges/{number}.png"})

    def experiment(rows):
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {"data__dataset": f"folder:{tmp_path / 'pairs'}", "data__options": {}, "data__image_size": 32}
        return opened("controlnet", **fields)

    made = experiment(rows)
    made.check()
    batch = next(made.pipeline.batches())
    kept = sorted(np.asarray(PIL.Image.open(folder / row["control"])).sum() for row in rows)
    assert sorted(picture.astype(int).sum() for picture in batch["control"]) == kept
    for row, message in (
        ({"file_name": "3.png", "text": "a star"}, "3.png must have a control picture"),
        ({**rows[3], "control": "edges/9.png"}, "names edges/9.png, which does not exist"),
        ({**rows[3], "control": "../9.png"}, "may only name files inside its folder"),
    ):
        with pytest.raises(UserError, match=message):
            experiment([*rows[:3], row]).check()
