"""Building metrics and their feature spaces from a config."""

import dataclasses
import json
import math
from typing import ClassVar

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.digits_unet import get_config
from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import METRICS
from diffusion_jax.metrics import ImageSet, evaluate_all, gaussian
from diffusion_jax.metrics.proxy import ProxyTraining
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.samplers import SAMPLERS, samplers_of
from experiments.building.wiring import Experiment
from experiments.evaluating import judging
from tests.encoder_weights import write_tokenizer, written
from tests.fresh_runs import scenes_config
from tests.inception_weights import write_random_inception


@pytest.fixture
def experiment(data_dir):
    config = get_config()
    config.data.data_dir = str(data_dir)
    return Experiment(config)


def images(count, seed):
    return ImageSet(images=np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8))


@pytest.mark.slow
def test_the_metrics_of_inception_from_a_file(experiment, tmp_path):
    """All metrics of Inception's feature space share one space and give finite numbers on small grey sets."""
    names = tuple(name for name in METRICS if judging.space_kind(name) == "inception")
    assert set(names) >= {"fid", "sfid", "kid", "inception_score", "precision_recall", "density_coverage"}
    weights = tmp_path / "inception.safetensors"
    write_random_inception(weights)
    experiment.config.evaluation.inception = str(weights)
    assert judging.available(experiment, names) == (names, {})
    samples, train, test = images(12, 0), images(10, 1), images(6, 2)
    metrics = judging.build_metrics(experiment, names, train)
    assert len({id(metric.space) for metric in metrics.values()}) == 1
    results = evaluate_all(metrics, samples, train=train, test=test)
    for name, numbers in results.items():
        assert all(math.isfinite(value) for value in numbers.values()), name
    assert results["fid"]["fid"] > 0
    assert 1 <= results["inception_score"]["inception_score"] <= 1008
    settings = judging.settings_of(metrics, test)["feature_spaces"]
    assert {settings[name]["resizer"] for name in names} == {"tf1_bilinear"}
    assert len(settings["fid"]["weights_sha256"]) == 64
    json.dumps(settings)

    reference = tmp_path / "reference.npz"
    mean, covariance = gaussian(metrics["fid"].space(train.images).pooled)
    np.savez(reference, mu=mean, sigma=covariance)
    experiment.config.evaluation.reference = str(reference)
    by_file = judging.build_metrics(experiment, ("fid",), train)
    again = evaluate_all(by_file, samples, train=train, test=test)
    assert again["fid"]["fid"] == pytest.approx(results["fid"]["fid"], rel=1e-6)
    assert judging.settings_of(by_file, test)["feature_spaces"]["fid"]["reference"] == str(reference)


def test_the_metrics_of_dinov2_and_clip_from_files(experiment, tmp_path):
    """Metrics with small encoders: each uses its own space, and the CLIP score uses class names as texts."""
    names = ("fd_dinov2", "cmmd", "clip_score")
    with pytest.raises(
        UserError, match=r"no fd_dinov2: .*dinov2_vitl14_pretrain.*no cmmd, clip_score: .*clip-vit-large"
    ):
        judging.available(experiment, names)
    (tmp_path / "clip").mkdir()
    written("clip", tmp_path / "clip" / "model.safetensors")
    write_tokenizer(tmp_path / "clip")
    written("dinov2", tmp_path / "dinov2.safetensors")
    with experiment.config.unlocked():
        experiment.config.evaluation.clip = str(tmp_path / "clip")
        experiment.config.evaluation.dinov2 = str(tmp_path / "dinov2.safetensors")
    assert judging.available(experiment, names) == (names, {})
    samples, train, test = (labelled(count, seed) for seed, count in enumerate((12, 10, 6)))
    spaces = {}
    metrics = judging.build_metrics(experiment, names, train, spaces)
    assert set(spaces) == {"dinov2", "clip"}
    results = evaluate_all(metrics, samples, train=train, test=test)
    assert results["fd_dinov2"]["fd_dinov2"] > 0
    assert results["cmmd"]["cmmd"] > 0
    features = spaces["clip"](samples.images).pooled
    texts = np.array(metrics["clip_score"].of_texts)
    assert texts.shape == (10, 32)
    cosines = (features * texts[samples.labels]).sum(axis=1)
    assert results["clip_score"]["clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), abs=1e-4)
    settings = judging.settings_of(metrics, test)["feature_spaces"]
    assert settings["fd_dinov2"]["features"] == "dinov2_2x128"
    assert settings["cmmd"]["features"] == settings["clip_score"]["features"] == "clip_2x128_24"

    reference = tmp_path / "reference.npz"
    mean, covariance = gaussian(spaces["dinov2"](train.images).pooled)
    np.savez(reference, mu=mean, sigma=covariance)
    with experiment.config.unlocked():
        experiment.config.evaluation.dinov2_reference = str(reference)
    by_file = judging.build_metrics(experiment, ("fd_dinov2",), train, spaces)
    again = evaluate_all(by_file, samples, train=train, test=test)
    assert again["fd_dinov2"]["fd_dinov2"] == pytest.approx(results["fd_dinov2"]["fd_dinov2"], rel=1e-6)


def test_a_proxy_of_data_without_classes_learns_the_kinds_that_the_data_tells_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(judging, "ProxyTraining", lambda: ProxyTraining(steps=3, batch_size=8))
    experiment = Experiment(scenes_config("small"))
    experiment.config.data.data_dir = str(tmp_path)
    assert judging.available(experiment, ("proxy_fd",)) == (("proxy_fd",), {})
    train, test = (judging.labelled(experiment.pictures, split, 16) for split in ("train", "validation"))
    assert len(set(train.labels)) > 5
    metrics = judging.build_metrics(experiment, ("proxy_fd",), train)
    found = evaluate_all(metrics, dataclasses.replace(test, labels=None), train=train, test=test)
    assert math.isfinite(found["proxy_fd"]["proxy_fd"])
    assert "classifier_test_accuracy" in judging.settings_of(metrics, test)["feature_spaces"]["proxy_fd"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("proxy_fd", "its features are those of a classifier of the data, and folder:.* has no classes"),
        ("class_accuracy", "it counts samples of the class that was asked for, and this network is told none"),
    ],
)
def test_metrics_of_classes_are_refused_for_data_without_any(name, reason, tmp_path):
    for number in range(4):
        Image.fromarray(images(1, number).images[0, ..., 0]).save(tmp_path / f"{number}.png")
    config = get_config()
    config.data.update(dataset=f"folder:{tmp_path}", split="train", validation_split="train")
    config.data.options = ConfigDict({"channels": 1})
    with pytest.raises(UserError, match=f"no {name}: {reason}"):
        judging.available(Experiment(config), (name,))


def labelled(count, seed):
    return ImageSet(images=images(count, seed).images, labels=np.arange(count) % 10)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [("discrete_flow", "is not a bound on a likelihood"), ("consistency_training", "it has no likelihood")],
)
def test_models_without_a_likelihood_say_so(recipe, reason, data_dir):
    config = get_config(f"objective={recipe}")
    config.data.data_dir = str(data_dir)
    with pytest.raises(UserError, match=f"no bits_per_dim: .*{reason}"):
        judging.available(Experiment(config), ("bits_per_dim",))


JUMPS = [name for name in OBJECTIVES if OBJECTIVES.example(name).makes == "consistency"]
SAMPLERS_OF_JUMPS = [name for name in samplers_of("gaussian") if SAMPLERS.example(name).denoiser_kind == "consistency"]


@pytest.mark.parametrize("sampler", SAMPLERS_OF_JUMPS)
def test_a_network_that_jumps_has_no_likelihood_whatever_its_sampler_is_called(sampler, data_dir):
    assert "lcm" in SAMPLERS_OF_JUMPS
    config = get_config("objective=consistency_training")
    config.data.data_dir = str(data_dir)
    config.sampling.sampler = ConfigDict({"name": sampler})
    with pytest.raises(UserError, match=r"no bits_per_dim: objective .* it has no likelihood"):
        judging.available(Experiment(config), ("bits_per_dim",))


def test_which_objectives_bound_a_likelihood():
    bounds = {name for name in OBJECTIVES if OBJECTIVES.example(name).bounds_likelihood}
    assert bounds.isdisjoint({*JUMPS, "discrete_flow"})
    assert bounds >= {"denoising", "flow_matching", "meanflow", "shortcut", "vdm", "d3pm", "mdlm", "sedd"}


def test_an_objective_and_a_sampler_of_the_users_own_are_asked_as_those_here(data_dir, monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Leap(type(OBJECTIVES.example("denoising"))):
        makes: ClassVar[str] = "consistency"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Leaper(type(SAMPLERS.example("lcm"))):
        pass

    for registry, part in ((OBJECTIVES, Leap), (SAMPLERS, Leaper)):
        monkeypatch.setattr(registry, "_factories", {**registry._factories, "mine": part})
        monkeypatch.setattr(registry, "_examples", {**registry._examples, "mine": {}})
    config = get_config()
    config.data.data_dir = str(data_dir)
    config.objective = ConfigDict({"name": "mine", **OBJECTIVES._examples["denoising"]})
    config.sampling.sampler = ConfigDict({"name": "mine"})
    monkeypatch.setattr(Experiment, "objective", Leap(**vars(OBJECTIVES.example("denoising"))))
    experiment = Experiment(config)
    assert experiment.sampler().denoiser_kind == "consistency"
    with pytest.raises(UserError, match=r"objective mine .* it has no likelihood"):
        judging.available(experiment, ("bits_per_dim",))


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_of_held_out_data_needs_some(name, experiment):
    experiment.config.data.validation_split = ""
    if "held_out" in METRICS.facts(name).reads:
        with pytest.raises(UserError, match=r"no .*: it needs held-out data"):
            judging.available(experiment, (name,))


@dataclasses.dataclass(frozen=True)
class Known:
    """A model with a known bound."""

    values: tuple
    bins: int = 17
    evaluations: int = 3

    def nats(self):
        return np.array(self.values)


def test_metrics_of_a_model_are_those_of_its_bound():
    model = Known((1.0, 2.0, 4.0))
    mean, half = 7 / 3, 1.959963984540054 * np.std(model.values, ddof=1) / math.sqrt(3)
    bits = METRICS.build("bits_per_dim")(model)
    assert bits["bits_per_dim"] == pytest.approx(mean / math.log(2))
    assert bits["bits_per_dim_high"] == pytest.approx((mean + half) / math.log(2))
    assert (bits["num_images"], bits["bins"], bits["network_evaluations"]) == (3, 17, 3)
    perplexity = METRICS.build("perplexity")(model)
    assert perplexity["perplexity"] == pytest.approx(math.exp(mean))
    assert perplexity["perplexity_low"] == pytest.approx(math.exp(mean - half))
    assert perplexity["bits_per_token"] == pytest.approx(mean / math.log(2))


def test_a_damaged_proxy_is_named(experiment, monkeypatch):
    monkeypatch.setattr(judging, "ProxyTraining", lambda: ProxyTraining(steps=3))
    train = ImageSet(images=images(20, 0).images, labels=np.arange(20) % 2)
    space, path = judging.proxy(experiment, train)
    assert judging.proxy(experiment, train)[0].settings == space.settings
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=path.name):
        judging.proxy(experiment, train)
    path.unlink()
