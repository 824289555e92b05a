"""Word accuracy is 1 for true renders and 0 for shuffled ones; the OCR engines themselves, if they are installed."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from diffusion_jax.data.glyphs import GlyphOptions, WordSuite
from diffusion_jax.errors import UserError
from diffusion_jax.metrics import METRICS, ImageSet, RapidOcr, Tesseract, calibration, edit_distance
from diffusion_jax.metrics.ocr import ByHeart, line_of
from diffusion_jax.metrics.word_reading import compared, mean_with_interval

SUITE = WordSuite(GlyphOptions(size=32, least_length=1, most_length=4, place="middle", fonts="bundled"), 40)
INSTALLED = importlib.util.find_spec("rapidocr") is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mumbles(ByHeart):
    """A reader that returns the true words in capitals, and drops the first letter of every second word."""

    @property
    def described(self):
        return "mumbling"

    def read(self, images):
        return [word.upper()[i % 2 :] for i, word in enumerate(super().read(images))]


def metric_of(name, **fields):
    return METRICS.build(name, prompts=SUITE, **{"reader": ByHeart(prompts=SUITE), **fields})


@pytest.fixture(scope="module")
def true():
    return ImageSet(images=SUITE.pictures(range(40)), texts=[prompt.text for prompt in SUITE])


def test_true_renders_are_right_and_shuffled_ones_wrong(true):
    metric = metric_of("word_accuracy")
    found = metric(true, train=true, test=true)
    assert (found["word_accuracy"], found["ceiling"], found["shuffled"]) == (1, 1, 0)
    assert found["word_accuracy_low"] == pytest.approx(40 / (40 + 1.959964**2), rel=1e-6)  # Wilson, 40 of 40
    shuffled = dataclasses.replace(true, images=np.roll(true.images, 20, axis=0))
    found = metric(shuffled, train=true, test=true)
    assert found["word_accuracy"] < 0.06  # single letters occur several times
    assert found["ceiling"] == 1
    distance = metric_of("edit_distance")
    assert distance(true, train=true, test=true)["edit_distance"] == 0
    assert distance(shuffled, train=true, test=true)["edit_distance"] > 0.8
    assert distance(true, train=true, test=true)["shuffled"] > 0.8


def test_what_is_held_out_stands_apart(true):
    images = true.images.copy()
    images[[prompt.held_out for prompt in SUITE]] = 90
    found = metric_of("word_accuracy")(dataclasses.replace(true, images=images), train=true, test=true)
    assert (found["word_accuracy_seen"], found["word_accuracy_held_out"]) == (1, 0)
    assert found["word_accuracy"] == 0.5


def test_a_second_engine_stands_beside_the_first(true):
    metric = metric_of("word_accuracy", second=Mumbles(prompts=SUITE))
    found = metric(true, train=true, test=true)
    assert found["word_accuracy"] == 1
    assert found["second_word_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert found["second_num_samples"] == 40
    assert metric.judges == ("true pictures by heart", "mumbling")
    assert METRICS.facts("word_accuracy").lower_is_better is False
    assert METRICS.facts("edit_distance").lower_is_better is True


def test_the_ceiling_of_latents_is_that_of_their_first_stage(true):
    """A first stage that loses every second picture halves the round-trip score."""

    def round_trip(images):
        made = images.copy()
        made[::2] = 0
        return made

    found = metric_of("word_accuracy", round_trip=round_trip)(true, train=true, test=true)
    assert (found["ceiling"], found["round_trip"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("abc", "abc", 0), ("", "abc", 1), ("", "", 0), ("abc", "xyz", 1), ("abcd", "abxd", 0.25), ("ab", "abcd", 0.5)],
)
def test_edits_over_the_length_of_the_longer_text(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_an_alphabet_without_capitals_leaves_case_out():
    assert compared(" Ab\u20747 ", "abc") == "ab47"
    assert compared("Ab", "abAB") == "Ab"
    assert compared("a  b", "ab") == "a b"


def test_the_interval_of_a_mean():
    found = mean_with_interval("d", np.array([0.2, 0.4]))
    assert found["d_high"] - found["d"] == pytest.approx(0.7)  # 12.706 times 0.1, clipped at 1
    assert found["d_low"] == 0
    assert mean_with_interval("d", np.array([0.3])) == {"d": 0.3, "d_low": 0.3, "d_high": 0.3}


def test_what_is_read_is_all_that_is_not_ground():
    image = np.full((32, 32, 3), 200, np.uint8)
    assert line_of(image) is None
    image[10:14, 8:20] = 30
    line = line_of(image)
    assert min(line.shape[:2]) >= 48
    assert line.shape[0] * 2 == line.shape[1]  # 4 + 2 * 2 pixels by 12 + 2 * 2
    far = image.copy()
    far[30, 30] = 30  # a stray mark is part of what is read
    assert line_of(far).shape != line.shape
    assert line_of(image[..., :1]).shape == line.shape  # grey


def test_what_is_not_judged(true):
    metric = metric_of("word_accuracy")
    with pytest.raises(UserError, match="they have none"):
        metric(dataclasses.replace(true, texts=None), train=true, test=true)
    with pytest.raises(UserError, match="the word of 'a cat' is unknown"):
        metric(dataclasses.replace(true, texts=("a cat",) * 40), train=true, test=true)
    with pytest.raises(UserError, match=r"data\.dataset=glyphs has them"):
        METRICS.build("edit_distance", prompts=())
    with pytest.raises(UserError, match="40 pictures for 2 words"):
        metric.scores(true.images, ["a", "b"])


def test_without_the_engine_one_line(true, monkeypatch):
    from diffusion_jax.metrics import ocr

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "ocr" in name else find(name))
    ocr._rapid_ocr.cache_clear()
    with pytest.raises(UserError, match=r"pip install '\.\[judges\]'"):
        METRICS.build("word_accuracy", prompts=SUITE)(true, train=true, test=true)
    monkeypatch.setattr(ocr.shutil, "which", lambda name: None)
    assert not Tesseract.is_there()
    with pytest.raises(UserError, match="apt install tesseract-ocr"):
        Tesseract().read(true.images[:1])


def test_a_card_of_a_judge(true):
    """The reader scores 1 on true pictures, at most 0.1 on shuffled ones, and 0 on blank and damaged ones."""
    metrics = {name: metric_of(name) for name in ("word_accuracy", "edit_distance")}
    found = calibration.calibrate(metrics, SUITE, 20, lambda images: images)
    card = {condition: result["word_accuracy"] for condition, result in found["cards"]["word_accuracy"].items()}
    assert card["truth"] == card["round trip"] == 1
    assert card["shuffled"] <= 0.1
    assert card["blank"] == card["blur 1.5 px"] == card["noise 60"] == 0
    assert found["cards"]["edit_distance"]["blank"]["edit_distance"] == 1
    assert found["num_prompts"] == 20
    assert found["judges"] == {name: ["true pictures by heart"] for name in metrics}
    table = calibration.table(found).splitlines()
    assert table[0] == "| pictures | Word accuracy ↑ | Edit distance ↓ |"
    assert table[2].startswith("| truth | 1.000 [")
    assert len(table) == 2 + len(card)


def test_damage_is_what_it_says():
    images = np.full((2, 16, 16, 3), 100, np.uint8)
    images[:, 8, 8] = 200
    assert abs(calibration.noisy(images, 15).astype(float) - images).std() == pytest.approx(15 * 0.6, rel=0.15)
    blurred = calibration.blurred(images, 1.0).astype(int)
    assert blurred[0, 8, 8, 0] == pytest.approx(100 + 100 / (2 * np.pi), abs=2)
    assert blurred[0, 8, 8].tolist() == [blurred[0, 8, 8, 0]] * 3


def test_a_card_needs_prompts():
    with pytest.raises(UserError, match="two prompts or more, not 1"):
        calibration.calibrate({"word_accuracy": metric_of("word_accuracy")}, SUITE, 1)
    with pytest.raises(UserError, match="nearest_neighbours: reads no prompts"):
        calibration.calibrate({"nearest_neighbours": METRICS.build("nearest_neighbours")}, SUITE, 8)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="RapidOCR is not installed")
@pytest.mark.parametrize("size", [32, 64])
def test_rapid_ocr_reads_true_renders_and_nothing_in_noise(size):
    lengths = {"least_length": 1, "most_length": 4} if size == 32 else {}
    suite = WordSuite(GlyphOptions(size=size, fonts="bundled", **lengths), 40)
    metric = METRICS.build("word_accuracy", prompts=suite, reader=RapidOcr(), second=ByHeart(prompts=suite))
    true = ImageSet(images=suite.pictures(range(40)), texts=[prompt.text for prompt in suite])
    found = metric(true, train=true, test=true)
    assert found["word_accuracy"] >= 0.9
    assert found["shuffled"] == 0
    noise = ImageSet(images=calibration.noisy(np.full_like(true.images, 128), 60), texts=true.texts)
    assert metric(noise, train=true, test=true)["word_accuracy"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not Tesseract.is_there(), reason="tesseract is not installed")
def test_tesseract_reads_most_true_renders():
    suite = WordSuite(GlyphOptions(size=64, fonts="bundled"), 12)
    words = [prompt.word for prompt in suite]
    metric = METRICS.build("word_accuracy", prompts=suite, reader=Tesseract())
    assert metric.scores(suite.pictures(range(12)), words).mean() >= 0.5
    assert Tesseract().described.startswith("tesseract")
