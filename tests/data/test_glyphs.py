"""Glyphs are a function of (options, split, index), never show held-out strings or fonts, and have exact boxes."""

import io
import json
import re

import numpy as np
import pytest
from fontTools.ttLib import TTFont

from diffusion_jax import data
from diffusion_jax.data import glyphs
from diffusion_jax.data.glyphs import fonts, rendering, strings
from diffusion_jax.data.sources import describe_dataset
from diffusion_jax.errors import UserError
from tests.data.test_packages import package_in

SMALL = {"fonts": "bundled", "num_examples": 400, "num_test": 200}


def opened(split="train", **options):
    return data.open_dataset("glyphs", split=split, **{**SMALL, **options})


@pytest.fixture(scope="module")
def train():
    return opened()


def test_an_example_is_a_function_of_seed_and_index(train):
    some = train.source.__getitems__([7, 3])
    np.testing.assert_array_equal(some[0]["image"], opened().source[7]["image"])
    assert train.source.texts([3]) == [some[1]["text"]]
    assert train.source.texts([3]) != opened(seed=1).source.texts([3])
    assert some[0]["image"].shape == (64, 64, 3)


def test_captions_say_what_is_written_in_many_wordings(train):
    made = train.source.described(range(400))
    for written, text in made:
        assert glyphs.quoted(text) == written.text
    wordings = {re.sub('"[^"]*"', '""', text) for _, text in made}
    assert len(wordings) > 50  # including colours, grounds and fonts
    assert {len(written.text) for written, _ in made} == set(range(3, 9))


def test_strings_and_fonts_are_held_out():
    shown = {split: opened(split).source.described(range(200)) for split in glyphs.SPLITS}
    strings_of = {split: {written.text for written, _ in made} for split, made in shown.items()}
    fonts_of = {split: {written.family for written, _ in made} for split, made in shown.items()}
    assert fonts_of["held_out"] == {"DejaVu Serif"}
    for split in ("train", "validation", "test"):
        assert fonts_of[split] == {"DejaVu Sans", "DejaVu Sans Mono", "STIX General"}
        assert not strings_of[split] & strings_of["held_out"]
        assert not any(strings.is_held_out(text, 0.1) for text in strings_of[split])
    assert all(strings.is_held_out(text, 0.1) for text in strings_of["held_out"])


def test_every_fetched_set_has_both_kinds_of_families():
    assert len({family.name for family in fonts.FETCHED}) == len(fonts.FETCHED) == 18
    assert sum(family.held_out for family in fonts.FETCHED) == 5


def test_boxes_hold_all_letters_and_nothing_else(train):
    for index, (written, _) in enumerate(train.source.described(range(60))):
        image = train.source[index]["image"].astype(int)
        ground = np.array(strings.GROUNDS[written.ground])
        inked = (image != ground).any(-1)
        left, top, right, bottom = written.box
        rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
        assert (left, right) == (columns[0], columns[-1] + 1)
        assert (top, bottom) == (rows[0], rows[-1] + 1)
        assert 0 < left < right < 64  # a margin stays free
        assert image[inked].size


def test_a_line_has_a_box_for_each_word():
    source = opened(kind="line", size=192, most_length=6).source
    for written, text in source.described(range(40)):
        assert len(written.words) == len(written.text.split()) in (2, 3)
        assert written.words[0][0] == written.box[0]
        assert written.words[-1][2] == written.box[2]
        assert all(a[2] < b[0] for a, b in zip(written.words, written.words[1:], strict=False))
        assert "the word" not in text


def test_letters_can_be_told_from_their_ground():
    for colour, ground in strings.PAIRS:
        difference = strings.luminance(strings.COLOURS[colour]) - strings.luminance(strings.GROUNDS[ground])
        assert abs(difference) >= 90
    assert {colour for colour, _ in strings.PAIRS} == set(strings.COLOURS)


def test_prompts_ask_for_what_is_held_out_and_have_true_pictures(train):
    prompts = train.prompts
    assert sum(prompt.held_out for prompt in prompts) == 300
    assert all(glyphs.quoted(prompt.text) == prompt.word for prompt in prompts)
    assert all(strings.is_held_out(p.word, 0.1) == p.held_out for p in prompts)
    assert all(("DejaVu Serif" in p.text) == p.held_out for p in prompts)
    assert prompts.pictures([1, 0]).shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(prompts.pictures([1, 0])[1], prompts.pictures([0])[0])


def test_it_is_described_before_its_fonts_are_there(tmp_path):
    info = describe_dataset("glyphs", data_dir=str(tmp_path), size=48)
    assert (info.spec.shape, info.num_examples, info.fields) == ((48, 48, 3), 50_000, ("text",))
    with pytest.raises(UserError, match=r"prepare_data --dataset=glyphs --data_dir="):
        data.open_dataset("glyphs", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'size'"):
        describe_dataset("glyphs", data_dir=str(tmp_path), sise=48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 24}, "a word of 8 characters cannot be read in 24 pixels: set size=39"),
        ({"least_length": 9}, "least_length=9 is more than most_length=8"),
        ({"alphabet": "a"}, "two characters or more"),
        ({"alphabet": "aa"}, "each once"),
        ({"alphabet": 'ab"'}, "quotation marks"),
        ({"alphabet": "ab日"}, "the font DejaVu Sans has no character '日'"),
        ({"kind": "poster"}, "kind must be"),
        ({"fonts": "all"}, "fonts must be"),
        ({"split": "held_out", "held_out": 0.0}, "is empty"),
        ({"split": "held_out", "least_length": 1, "most_length": 2}, "words of 3 characters or more"),
        ({"split": "tests"}, "has the splits train, validation"),
    ],
)
def test_what_makes_no_sense_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        opened(**options)
    assert "\n" not in str(caught.value)


def test_short_strings_are_never_held_out():
    assert not any(strings.is_held_out(text, 0.5) for text in ("", "a", "ab"))
    shares = [strings.is_held_out(f"{number:04d}", 0.1) for number in range(3000)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)


def test_what_a_prompt_quotes_and_which_font_it_names():
    assert glyphs.quoted('the word "ab7" in red') == "ab7"
    assert glyphs.quoted('the word \u201cab7\u201d over "cd"') == "ab7 cd"
    assert glyphs.quoted("a red star") == ""
    names = ["pt sans", "arvo", "dejavu sans", "dejavu sans mono"]
    assert strings.family_named('"arvo" in DejaVu Sans Mono', names) == "dejavu sans mono"
    assert strings.family_named('"arvo"', names) == ""


def test_fonts_are_prepared_once_from_a_folder(tmp_path, monkeypatch):
    """Fonts are prepared from packages in the real format; the test packages contain DejaVu as WOFF."""
    made = []
    for number in range(2):
        font, woff = TTFont(fonts.path_of(fonts.PLAIN, "")), io.BytesIO()
        font.flavor = "woff"
        font.save(woff)
        files = {f"files/f{number}-latin-400-normal.woff": woff.getvalue(), "LICENSE": b"free"}
        package = package_in(tmp_path / "given", f"@fontsource/f{number}", files)
        made.append(fonts.Family(name=f"F{number}", file=f"f{number}.ttf", package=package, held_out=number == 1))
    monkeypatch.setattr(fonts, "FETCHED", tuple(made))
    monkeypatch.setitem(fonts.SETS, "fetched", tuple(made))
    data_dir = str(tmp_path / "data")
    assert not glyphs.prepare_fonts(data_dir, str(tmp_path / "given")).was_there
    assert glyphs.prepare_fonts(data_dir).was_there  # nothing is downloaded
    said = json.loads((tmp_path / "data/glyphs/fonts/licences.json").read_text())
    assert said == {"@fontsource/f0@1.0.0": "MIT", "@fontsource/f1@1.0.0": "MIT"}
    place = (0.5, 0.5)
    pictures = [
        rendering.coverage("ab7", fonts.path_of(family, data_dir), 64, 20.0, place) for family in (*made, fonts.PLAIN)
    ]
    np.testing.assert_array_equal(pictures[0], pictures[2])
    (tmp_path / "data/glyphs/fonts/f1.ttf").unlink()
    assert not glyphs.prepare_fonts(data_dir, str(tmp_path / "given")).was_there
    assert fonts.path_of(made[1], data_dir).is_file()
    fonts.path_of(made[0], data_dir).write_bytes(b"no font")
    fonts.load.cache_clear()
    fonts.characters.cache_clear()
    with pytest.raises(UserError, match="not a readable font"):
        fonts.load(fonts.path_of(made[0], data_dir), 12)
    with pytest.raises(UserError, match="not a readable font"):
        fonts.characters(fonts.path_of(made[0], data_dir))


def test_a_canvas_is_what_a_prompt_asks_for_where_the_data_has_it():
    """The canvas shows the prompt's letters in the middle, as large as they fit, in the font that the prompt names."""
    source = opened("held_out", place="middle", size=48, most_length=4).source
    plans = [
        (written, image["image"]) for (written, _), image in zip(source.described(range(20)), source, strict=False)
    ]
    prompts = [f'the word "{written.text}" set in {written.family}' for written, _ in plans]
    drawn = glyphs.canvases(prompts, 48)
    assert drawn.shape == (20, 48, 48, 1)
    assert drawn.dtype == np.uint8
    for (written, image), canvas in zip(plans, drawn, strict=True):
        np.testing.assert_array_equal(rendering.paint(canvas[..., 0], written.colour, written.ground), image)
    plain, other = glyphs.canvases(['the word "ab7"', 'the word "ab7" in STIX General'], 48)
    assert (plain != other).any()
    assert not glyphs.canvases(["", "a red star"], 48).any()


def test_a_canvas_refuses_what_it_cannot_draw():
    with pytest.raises(UserError, match="the font DejaVu Sans has no character '日'"):
        glyphs.canvases(['the word "日"'], 32)
    with pytest.raises(UserError, match="is too long for a canvas of 32 pixels"):
        glyphs.canvases([f'"{"w" * 40}"'], 32)
    with pytest.raises(UserError, match=r"the font Lato is not in .*prepare_data --dataset=glyphs"):
        glyphs.canvases(['"ab" in Lato'], 32, "/nowhere")
