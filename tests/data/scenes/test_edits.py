"""Pairs of scenes differ exactly where the instruction says; all other bytes are equal."""

import numpy as np
import pytest

from diffusion_jax.data import Pipeline, open_dataset
from diffusion_jax.data.scenes import SceneOptions, held_out_pairs
from diffusion_jax.data.scenes.edits import EDITS, EditSource
from diffusion_jax.errors import UserError

COUNT = 400


@pytest.fixture(scope="module")
def source():
    return EditSource(SceneOptions(size=24, max_objects=3, num_examples=COUNT, num_test=COUNT), "train")


@pytest.fixture(scope="module")
def edits(source):
    return source.described(range(COUNT))


def kinds(objects):
    return sorted((one.shape, one.colour) for one in objects)


def test_every_kind_is_there_and_says_what_it_does(edits):
    assert {edit.kind for edit in edits} == set(EDITS)
    for edit in edits:
        before, after = edit.before.objects, edit.after.objects
        gone, new = set(before) - set(after), set(after) - set(before)
        sizes = {"add": (0, 1), "remove": (1, 0), "ground": (0, 0), "nothing": (0, 0)}
        assert (len(gone), len(new)) == sizes.get(edit.kind, (1, 1)), edit
        assert (edit.before.ground != edit.after.ground) == (edit.kind == "ground")
        words = edit.instruction.split()
        for one in gone:
            assert one.shape in words
        if edit.kind in ("add", "replace"):
            assert {next(iter(new)).shape, next(iter(new)).colour} <= set(words)
        if edit.kind == "recolour":
            assert next(iter(new)).colour in words
            assert next(iter(new)).box == next(iter(gone)).box
        if edit.kind == "move":
            ((_, old), (_, now)) = ((one.shape, one.box) for one in (*gone, *new))
            axis = 0 if {"left", "right"} & set(words) else 1
            assert old[1 - axis] == now[1 - axis]
            assert (now[axis] < old[axis]) == bool({"left", "top"} & set(words))


def test_who_is_spoken_of_is_the_only_one(edits):
    """The words for the changed object fit no other object of the picture before the edit."""
    for edit in edits:
        for one in set(edit.before.objects) - set(edit.after.objects):
            words = edit.instruction.split()
            coloured = f"{one.colour} {one.shape}" in edit.instruction
            twins = [
                other
                for other in edit.before.objects
                if other.shape == one.shape and (other.colour == one.colour or not coloured)
            ]
            assert len(twins) == 1, (edit.instruction, words)


def test_the_bytes_around_what_changes_are_the_same(source, edits):
    examples = source.__getitems__(range(COUNT))
    for example, edit in zip(examples, edits, strict=True):
        assert example["text"] == edit.instruction
        differ = (example["image"] != example["source"]).any(-1)
        changed = set(edit.before.objects) ^ set(edit.after.objects)
        outside = np.ones_like(differ)
        for one in changed:
            left, top, right, bottom = one.box
            outside[top:bottom, left:right] = False
        if edit.kind == "ground":
            assert differ.mean() > 0.2
        else:
            assert not differ[outside].any()
        assert differ.any() == (edit.kind != "nothing")


def test_a_function_of_the_index_and_what_is_held_out_is_not_shown(source, edits):
    np.testing.assert_array_equal(source[7]["image"], source.__getitems__([3, 7])[1]["image"])
    assert source.described([5])[0] == edits[5]
    assert source.texts([5, 6]) == [edit.instruction for edit in edits[5:7]]
    options = source.options
    out = {(options.shapes[i], options.colours[j]) for i, j in held_out_pairs(options)}
    assert not out & {kind for edit in edits for kind in kinds((*edit.before.objects, *edit.after.objects))}
    held = EditSource(options, "held_out").described(range(100))
    new = [
        kinds(set(edit.after.objects) - set(edit.before.objects)) for edit in held if edit.kind in ("add", "replace")
    ]
    assert new
    assert all(set(pair) <= out for pair in new)
    with pytest.raises(IndexError):
        source[COUNT]


def test_as_a_data_set():
    options = {"size": 24, "num_examples": 8, "num_test": 4, "kinds": ("recolour", "nothing")}
    info = open_dataset("scene_edits", **options).info
    assert info.fields == ("text", "source")
    pipeline = Pipeline(dataset="scene_edits", batch_size=4, options=options)
    assert pipeline.examples([0])[0]["source"].shape == (24, 24, 3)
    assert len(pipeline.texts()) == 8
    with pytest.raises(UserError, match="each once"):
        open_dataset("scene_edits", kinds=("move", "move"))
    with pytest.raises(UserError, match="'paint'"):
        open_dataset("scene_edits", kinds=("paint",))
