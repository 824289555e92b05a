"""Properties that every registered metric must have."""

import dataclasses
import json
import math
from typing import ClassVar

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import METRICS
from diffusion_jax.metrics import (
    ImageSet,
    PixelFeatures,
    evaluate_all,
    inception_score,
    kernel_distance_of_subsets,
)
from diffusion_jax.metrics.base import READS, proportion
from diffusion_jax.metrics.lpips import Lpips

SAMPLE_METRICS = [name for name in METRICS if not {"model", "reconstructions"} & METRICS.facts(name).reads]


def given(name, data):
    """Image sets that a metric can judge; metrics with prompts get true scenes of their prompts."""
    if "prompts" not in METRICS.facts(name).reads:
        return data
    prompts = METRICS.example(name).prompts
    texts = [prompt.text for prompt in prompts[:36]]
    true, other = (
        ImageSet(images=prompts.pictures(rows), texts=texts) for rows in (range(36), [*range(30), *range(6)])
    )
    return {"samples": other, "train": true, "test": true}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centres = rng.integers(40, 216, size=(3, 6, 5, 2))

    def draw(n):
        labels = rng.integers(0, 3, size=n)
        return ImageSet(
            images=np.clip(centres[labels] + rng.normal(0, 30, (n, 6, 5, 2)), 0, 255).astype(np.uint8), labels=labels
        )

    return {"samples": draw(40), "train": draw(120), "test": draw(60)}


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_is_a_hashable_value(name):
    assert METRICS.example(name) == METRICS.example(name)
    assert hash(METRICS.example(name)) == hash(METRICS.example(name))
    assert METRICS.example(name).__doc__


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_a_metric_gives_a_flat_dict_of_finite_numbers(name, data):
    data = given(name, data)
    result = METRICS.example(name)(data["samples"], train=data["train"], test=data["test"])
    assert result
    for key, value in result.items():
        assert isinstance(key, str)
        assert isinstance(value, int | float), key
        assert math.isfinite(value), key
        if key.endswith("_low"):
            centre = result[key.removesuffix("_low")]
            assert value <= centre <= result[key.removesuffix("_low") + "_high"]


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_a_metric_is_deterministic_and_does_not_depend_on_the_order_of_samples(name, data):
    data = given(name, data)
    metric = METRICS.example(name)
    samples = data["samples"]
    order = np.random.default_rng(1).permutation(len(samples))
    turned = samples.take(order)
    first = metric(samples, train=data["train"], test=data["test"])
    assert first == metric(samples, train=data["train"], test=data["test"])
    again = metric(turned, train=data["train"], test=data["test"])
    assert set(again) == set(first)
    for key, value in first.items():
        assert again[key] == pytest.approx(value, rel=1e-12), key


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_a_metric_leaves_its_inputs_alone(name, data):
    data = given(name, data)
    before = {key: value.images.copy() for key, value in data.items()}
    METRICS.example(name)(data["samples"], train=data["train"], test=data["test"])
    for key, images in before.items():
        np.testing.assert_array_equal(images, data[key].images)


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_a_metric_refuses_images_of_another_size(name, data):
    data = given(name, data)
    other = ImageSet(images=np.zeros((4, 7, 5, 2), np.uint8), labels=np.zeros(4, np.int32))
    with pytest.raises(UserError, match="resolution"):
        METRICS.example(name)(other, train=data["train"], test=data["test"])


@pytest.mark.parametrize("name", ["fid", "sfid", "kid", "inception_score", "proxy_fd"])
def test_a_metric_of_features_is_not_had_without_its_space(name):
    with pytest.raises(UserError, match=r"needs a feature space: that of (inception|proxy)"):
        METRICS.build(name)


def test_an_unknown_metric_lists_the_known_ones(data):
    with pytest.raises(UserError, match=r"did you mean 'class_accuracy'.*nearest_neighbours"):
        evaluate_all(["class_acuracy"], data["samples"], train=data["train"], test=data["test"])


def test_evaluate_all_names_each_metric(data):
    names = [name for name in SAMPLE_METRICS if given(name, data) is data]
    metrics = {name: METRICS.example(name) for name in names}
    result = evaluate_all(metrics, data["samples"], train=data["train"], test=data["test"])
    assert list(result) == names


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), None),
        (np.zeros((2, 4, 4), np.uint8), None),
        (np.zeros((0, 4, 4, 1), np.uint8), None),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int32)),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.float32)),
    ],
)
def test_bad_image_sets_are_refused(images, labels):
    with pytest.raises(UserError):
        ImageSet(images=images, labels=labels)


def test_each_image_has_its_text():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    assert ImageSet(images=images, texts=["a", "b"]).take(np.array([1])).texts == ("b",)
    with pytest.raises(UserError, match="3 texts for 2 images"):
        ImageSet(images=images, texts=("a", "b", "c"))


def test_a_subset_is_fixed_and_keeps_pairs_together():
    full = ImageSet(images=np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1), labels=np.arange(200))
    part = full.subset(50)
    assert len(part) == 50
    np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
    np.testing.assert_array_equal(part.labels, full.subset(50).labels)
    assert full.subset(None) is full


def test_a_proportion_has_wilsons_interval():
    """The interval is Wilson's; its width is never zero, and it stays within [0, 1]."""
    found = proportion("right", np.arange(10) < 8)
    z = 1.959963984540054
    centre, half = (0.8 + z**2 / 20) / (1 + z**2 / 10), z * math.sqrt(0.016 + z**2 / 400) / (1 + z**2 / 10)
    assert found["right"] == 0.8
    assert (found["right_low"], found["right_high"]) == pytest.approx((centre - half, centre + half), rel=1e-9)
    none, all_ = (proportion("right", np.full(5, hit)) for hit in (False, True))
    assert none["right_low"] == 0
    assert none["right_high"] > 0.3
    assert all_["right_high"] == 1


def of_samples(name):
    return "model" not in METRICS.facts(name).reads


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_states_its_facts(name):
    facts = METRICS.facts(name)
    assert facts.title
    assert facts.about.endswith(".")
    assert facts.number(facts.headline).ranks
    assert all(facts.number(key).ranks for key in facts.also)
    assert facts.reads <= set(READS)
    assert facts.needs in (None, "inception", "dinov2", "clip", "proxy")


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_a_result_has_all_that_its_facts_name(name, data):
    data = given(name, data)
    facts = METRICS.facts(name)
    result = METRICS.example(name)(data["samples"], train=data["train"], test=data["test"])
    assert set(facts.shown) <= set(result)
    assert set(facts.numbers) - {"subsets_mean", "subsets_std"} <= set(result)  # these two need many images


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_black_pictures_are_worse_than_real_ones(name, data):
    """Black pictures score worse than real ones in the direction that the metric states."""
    data = given(name, data)
    facts, metric = METRICS.facts(name), METRICS.example(name)
    black = dataclasses.replace(data["test"], images=np.zeros_like(data["test"].images))
    good = metric(data["test"], train=data["train"], test=data["test"])
    bad = metric(black, train=data["train"], test=data["test"])
    if name in ("inception_score", "clip_score"):  # these say nothing about pixels
        return
    for key in facts.shown:
        number = facts.number(key)
        assert number.badness(good[key]) < number.badness(bad[key]), key


def test_directions():
    lower = {name for name in METRICS if METRICS.facts(name).lower_is_better}
    assert lower >= {"fid", "sfid", "kid", "fd_dinov2", "cmmd", "proxy_fd", "proxy_kd", "bits_per_dim", "perplexity"}
    higher = {name for name in METRICS if METRICS.facts(name).lower_is_better is False}
    assert higher >= {"class_accuracy", "inception_score", "clip_score", "precision_recall", "prompt_adherence"}
    ratio = METRICS.facts("nearest_neighbours").number("distance_ratio")
    assert ratio.badness(1.01) < ratio.badness(0.9) < ratio.badness(0.2)
    assert ratio.badness(1.5) == ratio.badness(0.5)
    assert ratio.arrow == "→ 1"
    assert Lpips.lower_is_better is True
    assert {name for name in METRICS if not of_samples(name)} == {"bits_per_dim", "perplexity"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_worse_than_all(value):
    for name in ("fid", "class_accuracy", "nearest_neighbours"):
        facts = METRICS.facts(name)
        assert facts.number(facts.headline).badness(value) == math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stated:
    """A metric that returns the given result."""

    returns: tuple = (("score", 1.0),)
    title: ClassVar[str] = "Score"
    about: ClassVar[str] = "A score."
    headline: ClassVar[str] = "score"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})

    def __call__(self, samples, *, train, test):
        return dict(self.returns)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"headline": ""}, "headline must be text"),
        ({"reads": frozenset({"sample"})}, "reads must be"),
        ({"reads": ("samples",)}, "reads must be"),
        ({"lower_is_better": None}, "finite target"),
        ({"lower_is_better": None, "target": math.nan}, "finite target"),
        ({"lower_is_better": True, "target": 1.0}, "finite target"),
        ({"lower_is_better": "yes"}, "finite target"),
        ({"also": ("other",)}, "other of `also` needs a direction"),
    ],
)
def test_wrong_facts_are_refused(facts, message):
    with pytest.raises(UserError, match=f"metric 'wrong'.*{message}"):
        METRICS.register("wrong")(type("Wrong", (Stated,), facts))
    assert "wrong" not in METRICS


def test_a_metric_without_facts_is_refused():
    with pytest.raises(UserError, match=r"'bare' does not state title, about, headline, lower_is_better, reads"):
        METRICS.register("bare")(lambda samples, train, test: {"bare": 1.0})
    assert "bare" not in METRICS


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ((("other", 1.0),), "its headline 'score' is not among these"),
        ((), "returned nothing"),
        ((("score", "much"),), "must return numbers; score: not a number"),
        ((("score", True),), "must return numbers; score: not a number"),
        (((3, 1.0),), "dict of numbers by name"),
    ],
)
def test_a_result_without_its_headline_is_one_line(returns, message, data):
    with pytest.raises(UserError, match=message) as caught:
        evaluate_all({"mine": Stated(returns=returns)}, data["samples"], train=data["train"], test=data["test"])
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_become_plain_ones(data):
    metric = Stated(returns=(("score", np.float32(0.5)), ("num_samples", np.int64(3))))
    result = evaluate_all({"mine": metric}, data["samples"], train=data["train"], test=data["test"])
    assert json.dumps(result) == '{"mine": {"score": 0.5, "num_samples": 3}}'


def test_a_metric_of_the_model_is_not_asked_about_samples(data):
    with pytest.raises(UserError, match="bits_per_dim: measures the model itself"):
        evaluate_all(["bits_per_dim"], data["samples"], train=data["train"], test=data["test"])


def test_subsets_of_kid_are_those_of_the_images_as_they_came(data):
    """KID draws its subsets from the images in their given order, as torch-fidelity does."""
    space = PixelFeatures()
    metric = METRICS.build({"name": "kid", "subset_size": 20, "num_subsets": 5}, space=space)
    found = metric(data["samples"], train=data["train"], test=data["test"])
    features = [space(data[name].images).pooled for name in ("samples", "train")]
    mean, std = kernel_distance_of_subsets(*features, subset_size=20, num_subsets=5)
    assert (found["subsets_mean"], found["subsets_std"]) == (mean, std)


def test_splits_of_the_inception_score_depend_on_the_set_alone(data):
    metric = METRICS.build({"name": "inception_score", "splits": 4}, space=PixelFeatures())
    order = np.random.default_rng(1).permutation(len(data["samples"]))
    turned = ImageSet(images=data["samples"].images[order])
    first, again = (metric(one, train=data["train"], test=data["test"]) for one in (data["samples"], turned))
    assert again == pytest.approx(first, rel=1e-12)
    whole = METRICS.build({"name": "inception_score", "splits": 1}, space=PixelFeatures())
    logs = PixelFeatures()(data["samples"].images).log_probabilities
    expected = inception_score(logs, splits=1)[0]
    found = whole(data["samples"], train=data["train"], test=data["test"])["inception_score"]
    assert found == pytest.approx(expected, rel=1e-6)
