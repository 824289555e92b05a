"""Representation alignment (REPA): the loss, the network's features, and the order of the data's features."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.digits_dit import get_config
from diffusion_jax import data
from diffusion_jax.conditioning import Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import NetworkFeatures
from diffusion_jax.models import MODELS, count_parameters, init_params
from diffusion_jax.objectives import OBJECTIVES, Context
from diffusion_jax.rng import BatchKey
from diffusion_jax.schedulers import Parameterization, Prediction
from diffusion_jax.specs import DataSpec
from diffusion_jax.systems import Model
from experiments import prepare_features
from experiments.building.wiring import Experiment
from tests.encoder_weights import written

TINY = {"name": "dit", "patch_size": 2, "hidden_size": 16, "depth": 3, "num_heads": 2}


def network(**fields):
    return MODELS.build({**TINY, **fields}, image_size=4, image_channels=1, num_classes=3)


def at_work(module):
    """Random parameters without zeros."""
    draw = np.random.default_rng(0)
    shapes = init_params(module, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.float32(leaf + 0.1 * draw.standard_normal(leaf.shape)), shapes)


INPUTS = (
    np.random.default_rng(1).standard_normal((2, 4, 4, 1)).astype(np.float32),
    np.float32([0.2, 0.7]),
    {"label": np.int32([0, 2])},
)


def test_alignment_is_subtracted_from_the_loss():
    plain, aligned = OBJECTIVES.build("flow_matching"), OBJECTIVES.build({"name": "repa", "weight": 0.5})
    x0 = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
    features = jax.random.normal(jax.random.key(1), (6, 4, 8))
    key = BatchKey.create(jax.random.key(2), 6)

    def denoise(xt, t):
        return Prediction.from_x0(plain.schedule, 0.5 * xt, xt, t)

    base, _ = plain.loss(denoise, {"data": x0}, key)
    for scale, expected in ((3.0, 1.0), (-0.1, -1.0)):
        context = Context(aligned=lambda xt, t, scale=scale: (denoise(xt, t), {"features": scale * features}))
        loss, metrics = aligned.loss(denoise, {"data": x0, "features": features}, key, context)
        np.testing.assert_allclose(metrics["alignment"], expected, rtol=1e-5)
        np.testing.assert_allclose(loss, base - 0.5 * expected, rtol=1e-5)
    without, metrics = aligned.loss(denoise, {"data": x0}, key, context)
    np.testing.assert_allclose(without, base, rtol=1e-6)
    assert "alignment" not in metrics


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_features_are_those_after_the_named_block(remat):
    """The features equal those of a network truncated at the block plus the MLP, and the output does not change."""
    module = network(align_depth=2, align_channels=5, remat=remat)
    params = at_work(module)
    assert module.sows == {"features": (4, 5)}
    out, sown = module.apply({"params": params}, *INPUTS, mutable=["sown"])
    own = {name: value for name, value in params.items() if not name.startswith("projector")}
    np.testing.assert_allclose(out, network().apply({"params": own}, *INPUTS), atol=1e-5)
    np.testing.assert_allclose(out, module.apply({"params": params}, *INPUTS), atol=1e-5)

    short = network(depth=2, align_depth=2, align_channels=5)
    first = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:2], params["blocks"])}
    _, expected = short.apply({"params": first}, *INPUTS, mutable=["sown"])
    features = sown["sown"]["features"]
    assert features.shape == (2, 4, 5)
    np.testing.assert_allclose(features, expected["sown"]["features"], atol=1e-5)
    _, later = network(align_depth=3, align_channels=5).apply({"params": params}, *INPUTS, mutable=["sown"])
    assert np.abs(later["sown"]["features"] - features).max() > 1e-3
    mlp = 16 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 5 + 5
    assert count_parameters(module) == count_parameters(network()) + mlp


def test_the_gradient_of_alignment_reaches_early_blocks_alone():
    module = network(align_depth=2, align_channels=5)
    model = Model(
        data=DataSpec(kind="pixels", shape=module.image_shape),
        network=module,
        process=Parameterization.build(schedule="rectified_flow", prediction="velocity", time_input="t"),
        conditioning=Conditioning(parts=(Label(num_classes=module.num_classes),) if module.num_classes else ()),
    )

    def alignment(params):
        _, sown = model.sowing({"network": params}, INPUTS[2])(jnp.asarray(INPUTS[0]), jnp.asarray(INPUTS[1]))
        return jnp.sum(sown["features"] ** 2)

    gradient = jax.grad(alignment)(at_work(module))
    per_block = np.abs(gradient["blocks"]["mlp_in"]["kernel"]).max(axis=(1, 2))
    assert np.all(per_block[:2] > 0)
    assert per_block[2] == 0
    assert np.abs(gradient["final"]["linear"]["kernel"]).max() == 0


@pytest.mark.parametrize(
    ("fields", "message"), [({"align_depth": 4}, "at most depth=3"), ({"align_depth": -1}, "at most")]
)
def test_a_block_that_is_not_there(fields, message):
    with pytest.raises(UserError, match=message):
        network(**fields)


@pytest.fixture
def file(tmp_path, data_dir):
    """A file of features that encode the index of their example."""
    count = data.open_dataset("digits", data_dir=str(data_dir)).info.num_examples
    features = np.arange(count, dtype=np.float32)[:, None, None] + np.zeros((1, 4, 2), np.float32)
    np.save(tmp_path / "features.npy", features)
    return tmp_path / "features.npy"


def test_features_come_with_their_examples(file, data_dir):
    fields = dict(dataset="digits", data_dir=str(data_dir), batch_size=32, seed=3, features=str(file))
    pipeline = data.Pipeline.from_config(fields)
    images, labels = pipeline.arrays()
    assert pipeline.features_shape == (4, 2)
    batches = [next(pipeline.batches(50, process_index=i, process_count=2)) for i in (0, 1)]
    for batch in batches:
        index = batch["features"][:, 0, 0].astype(int)
        assert batch["features"].shape == (16, 4, 2)
        np.testing.assert_array_equal(batch["label"], labels[index])
        np.testing.assert_allclose(batch["data"], images[index] / np.float32(127.5) - 1, atol=1e-6)


def test_features_that_do_not_fit_are_named(file, data_dir, tmp_path):
    fields = dict(dataset="digits", data_dir=str(data_dir), batch_size=8)
    with pytest.raises(UserError, match=r"set data\.flip=False"):
        data.Pipeline.from_config({**fields, "features": str(file), "flip": True})
    with pytest.raises(UserError, match="has 1437 examples, the split 'test'"):
        next(data.Pipeline.from_config({**fields, "features": str(file), "split": "test"}).batches())
    with pytest.raises(UserError, match=r"cannot read data.features=.*missing.npy"):
        next(data.Pipeline.from_config({**fields, "features": str(tmp_path / "missing.npy")}).batches())


def recipe(data_dir, **model):
    """The config of the digits transformer with alignment."""
    config = get_config()
    with config.unlocked():
        config.data.update(data_dir=str(data_dir), flip=False, features="")
        config.model = ConfigDict({**TINY, "align_depth": 1, "align_channels": 2, **model})
        config.objective = ConfigDict({"name": "repa"})
        config.process.prediction = ConfigDict({"name": "velocity"})
        config.process.schedule = ConfigDict({"name": "rectified_flow"})
        config.time_sampler = ConfigDict({"name": "uniform"})
        config.sampling.sampler = ConfigDict({"name": "flow_euler"})
        config.sampling.grid = ConfigDict({"name": "uniform"})
        config.evaluation.metrics = ()
        config.train.batch_size = 16
        config.train.steps = 2
    return config


def test_what_a_config_lacks_is_named(data_dir, file):
    with pytest.raises(UserError, match=r"experiments.prepare_features; give the file with --config.data.features"):
        Experiment(recipe(data_dir)).check()
    with pytest.raises(UserError, match=r"set model\.align_depth of a dit"):
        Experiment(recipe(data_dir, align_depth=0)).check()
    config = recipe(data_dir)
    with config.unlocked():
        config.data.features = str(file)
    with pytest.raises(UserError, match="have 4 tokens and 2 channels, the network's have 16 and 2"):
        Experiment(config).check()


@pytest.mark.slow
def test_features_of_dinov2_and_a_training_on_them(command, data_dir, tmp_path, monkeypatch):
    written("dinov2", tmp_path / "dinov2.safetensors")
    config = recipe(data_dir, patch_size=4, align_channels=128)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    out = tmp_path / "features.npy"
    arguments = (f"--config=configs/from_json.py:{path}", f"--dinov2={tmp_path / 'dinov2.safetensors'}", f"--out={out}")
    printed, _ = command.run("prepare_features", *arguments, "--batch_size=500")
    assert "1437 x 4 x 128 features of dinov2_2x128_patches" in printed
    features = np.load(out)
    assert (features.shape, features.dtype) == ((1437, 4, 128), np.float16)
    assert np.isfinite(features).all()
    assert not list(tmp_path.glob("*.partial*"))

    workdir = tmp_path / "run"
    command.run("train", arguments[0], f"--workdir={workdir}", f"--config.data.features={out}", "--config.log.every=1")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(-1 <= row["alignment"] <= 1 for row in rows if "alignment" in row)
    assert any("alignment" in row for row in rows)
    wrong = command.fails(
        "prepare_features", f"--config=configs/from_json.py:{path}", *arguments[1:], "--config.model.align_channels=64"
    )
    assert "has 128 channels, the network aligns 64" in wrong


def test_features_go_on_where_they_were_stopped(data_dir, tmp_path):
    config, seen = recipe(data_dir), []

    def encode(params, images):
        return {"pooled": jnp.broadcast_to(images.mean(axis=(1, 2, 3))[:, None], (len(images), 32))}

    def stopping(images):
        seen.append(len(images))
        if sum(seen) > 900:
            raise KeyboardInterrupt
        return space(images)

    space = NetworkFeatures(encode, {}, {"features": "mean"}, channels=1)
    experiment, out = Experiment(config), tmp_path / "features.npy"
    stopped = dataclasses.replace(space)
    object.__setattr__(stopped, "_extract", lambda images, order: stopping(images[order]))
    with pytest.raises(KeyboardInterrupt):
        prepare_features.write_features(experiment, stopped, out, (16, 2), 300)
    assert not out.exists()
    seen.clear()
    prepare_features.write_features(experiment, stopped, out, (16, 2), 300)
    assert sum(seen) == 1437 - 900
    images, _ = experiment.pipeline.arrays()
    np.testing.assert_allclose(np.load(out)[:, 0, 0], images.mean(axis=(1, 2, 3)), rtol=1e-3)
    np.save(tmp_path / "theirs.npy", np.ones(3))
    with pytest.raises(UserError, match=r"theirs\.npy is in the way"):
        prepare_features.write_features(experiment, stopped, tmp_path / "theirs.npy", (16, 2), 300)
    assert np.load(tmp_path / "theirs.npy").tolist() == [1, 1, 1]
