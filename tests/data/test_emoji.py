"""Emoji are matched by code point, split by subject, and drawn exactly."""

import collections
import importlib.util
import json

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data import builders, emoji
from diffusion_jax.errors import UserError
from tests.data.test_packages import package_in

CODES = [f"1f6{number:02x}" for number in range(40)]
DRAWN = importlib.util.find_spec("resvg_py") is not None


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Small packages in the real format: squares with one colour per style, 40 subjects, one with a skin tone."""
    folder, colours = tmp_path / "packages", {"noto": "#ff0000", "fluent": "#00ff00", "openmoji": "#0000ff"}
    styles = {}
    for style, package in emoji.STYLES.items():
        body = f'<path fill="{colours[style]}" d="M0 0h8v8h-8z"/>'
        icons = {f"icon-{code}": {"body": body} for code in [*CODES, f"{CODES[0]}-1f3fb"]}
        icons["icon-wide"] = {"body": body, "width": 16, "height": 8}
        chars = {name.removeprefix("icon-"): name for name in icons if name != "icon-wide"}
        files = {"icons": {"icons": icons, "width": 8, "height": 8}, "chars": chars | {CODES[1]: "icon-wide"}}
        encoded = {f"{name}.json": json.dumps(value).encode() for name, value in files.items()}
        styles[style] = package_in(folder, package.name, encoded)
    skins = [{"hexcode": f"{CODES[0].upper()}-1F3FB", "label": "hand: light"}]
    entries = [{"hexcode": f"{code.upper()}-FE0F", "label": f"thing {code}", "tags": list("abcd")} for code in CODES]
    entries[0]["skins"] = skins
    del entries[2]["tags"]
    other = [{**entry, "label": f"Ding {entry['hexcode']}"} for entry in entries]
    words = {"en/data.json": json.dumps(entries).encode(), "de/data.json": json.dumps(other).encode()}
    monkeypatch.setattr(emoji, "STYLES", styles)
    monkeypatch.setattr(emoji, "WORDS", package_in(folder, "emojibase-data", words))
    monkeypatch.setattr(emoji, "PACKAGES", (*styles.values(), emoji.WORDS))
    return str(folder)


def test_styles_are_matched_by_code_point(packages, tmp_path):
    found = emoji.read_emoji(str(tmp_path), package_dir=packages)
    assert collections.Counter(one.style for one in found) == dict.fromkeys(emoji.STYLES, 41)
    assert found[0].label == f"thing {CODES[0]}"
    assert (found[1].code, found[1].subject, found[1].label) == (f"{CODES[0]}-1f3fb", CODES[0], "hand: light")


def test_a_subject_is_in_one_split(packages, tmp_path):
    found = emoji.read_emoji(str(tmp_path), package_dir=packages)
    splits = collections.defaultdict(set)
    for one in found:
        splits[one.subject].add(one.split)
    assert {len(of) for of in splits.values()} == {1}
    assert {split for of in splits.values() for split in of} == set(emoji.SPLITS)


def test_captions_name_subject_and_style(packages, tmp_path):
    found = emoji.read_emoji(str(tmp_path), package_dir=packages)
    captions = [one.caption("en") for one in found]
    assert all(one.label in text and one.style in text for one, text in zip(found, captions, strict=True))
    assert len({text.replace(one.label, "") for one, text in zip(found, captions, strict=True)}) > 9
    untagged = next(one for one in found if not one.tags)
    assert "()" not in untagged.caption("de")
    german = emoji.read_emoji(str(tmp_path), "de", packages)
    assert german[0].caption("de").startswith("Ding")


def test_28_languages_each_a_config():
    assert len(set(emoji.LANGUAGES)) == 28
    from diffusion_jax.data.emoji_builder import Emoji, config_name

    assert set(Emoji.builder_configs) == {config_name(size, of) for size in emoji.SIZES for of in emoji.LANGUAGES}


@pytest.mark.skipif(not DRAWN, reason="resvg-py is not installed")
def test_prepared_emoji_are_pictures_with_style_and_caption(packages, tmp_path):
    prepared = builders.prepare("emoji", str(tmp_path / "data"), package_dir=packages, progress=False)
    assert sum(prepared.num_examples.values()) == 123
    opened = data.open_dataset("emoji/32", data_dir=str(tmp_path / "data"))
    assert opened.info.class_names == tuple(emoji.STYLES)
    assert "text" in opened.info.fields
    example = next(e for e in opened.source if e["label"] == 1 and CODES[3] in e["text"])
    np.testing.assert_array_equal(example["image"], np.broadcast_to([0, 255, 0], (32, 32, 3)))
    wide = next(e for e in opened.source if e["label"] == 0 and CODES[1] in e["text"])["image"]
    np.testing.assert_array_equal(wide[0], np.full((32, 3), 255))  # centred, on white
    np.testing.assert_array_equal(wide[16, 0], [255, 0, 0])
    assert builders.prepare("emoji", str(tmp_path / "data"), progress=False).was_there


def test_without_a_renderer_one_line(packages, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "resvg_py" else find(name))
    with pytest.raises(UserError, match=r"pip install '\.\[emoji\]'"):
        builders.prepare("emoji", str(tmp_path / "data"), package_dir=packages, progress=False)


def test_what_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(UserError, match="prepare_data --dataset=emoji"):
        data.open_dataset("emoji/64", data_dir=str(tmp_path))
