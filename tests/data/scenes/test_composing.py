"""Scenes are a function of (options, split, index), and show exactly the objects of their graphs."""

import hashlib
import itertools

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.scenes import (
    COLOURS,
    SHAPES,
    SPLITS,
    SceneOptions,
    SceneSource,
    compose,
    held_out_pairs,
    masks,
    paint,
    training_pairs,
)
from diffusion_jax.data.scenes.draws import Draws
from diffusion_jax.data.scenes.vocabulary import CONTRAST, GROUNDS, SIZES, sides, stamp
from diffusion_jax.errors import UserError


def pairs_of(scene):
    return {(SHAPES.index(one.shape), list(COLOURS).index(one.colour)) for one in scene.objects}


def test_an_example_depends_on_its_index_alone(source):
    whole = source.__getitems__(np.arange(40))
    chosen = [31, 7, 7, 0, 39]
    for index, example in zip(chosen, source.__getitems__(chosen), strict=True):
        np.testing.assert_array_equal(example["image"], whole[index]["image"])
        assert example["text"] == whole[index]["text"]
        assert source[index]["text"] == example["text"]


def test_bytes_are_pinned():
    """The bytes of the scenes are pinned: a change alters every result on scenes and must raise source.VERSION."""
    examples = SceneSource(SceneOptions(max_objects=4, num_examples=64), "train").__getitems__(range(64))
    found = hashlib.sha256(b"".join(example["image"].tobytes() + example["text"].encode() for example in examples))
    assert found.hexdigest() == "f905fe8b150efd70736e7da7be339405c2d715590202900cb1b0ddcdbd45c442"


def test_a_picture_is_of_the_kind_of_its_largest_object(source, described):
    kinds = source.kinds(range(len(described)))
    assert kinds.dtype == np.int32
    for kind, (scene, *_) in zip(kinds, described, strict=True):
        widths = [one.box[2] - one.box[0] for one in scene.objects]
        largest = scene.objects[widths.index(max(widths))]
        assert (SHAPES[kind // len(COLOURS)], list(COLOURS)[kind % len(COLOURS)]) == (largest.shape, largest.colour)
    pipeline = data.Pipeline(dataset="scenes", batch_size=1, options={"num_examples": 40})
    np.testing.assert_array_equal(pipeline.kinds(max_examples=4), pipeline.kinds()[[0, 10, 20, 30]])


def test_every_example_is_another_picture():
    examples = SceneSource(SceneOptions(num_examples=2000), "train").__getitems__(range(2000))
    assert len({example["image"].tobytes() for example in examples}) == 2000


def test_splits_and_seeds_differ():
    sources = [SceneSource(SceneOptions(seed=seed), split) for seed in (0, 1) for split in SPLITS]
    assert len({source[5]["image"].tobytes() for source in sources}) == len(sources)


def test_objects_lie_apart_and_inside(source, described):
    gap, size = source.options.gap, source.options.size
    for scene, _, _ in described:
        for one in scene.objects:
            assert min(one.box) >= 1
            assert max(one.box) <= size - 1
        for one, other in itertools.combinations(scene.objects, 2):
            distances = (other.box[a] - one.box[a + 2] for a in (0, 1)), (one.box[a] - other.box[a + 2] for a in (0, 1))
            assert max(itertools.chain(*distances)) >= gap


def test_numbers_sizes_and_grounds_are_all_there(source, described):
    counts = np.bincount([len(scene.objects) for scene, _, _ in described], minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() > 45  # of 75
    for position, values in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)):
        seen = {getattr(one, position) for scene, _, _ in described for one in scene.objects}
        assert seen == set(values)
    for one in (one for scene, _, _ in described for one in scene.objects):
        left, top, right, bottom = one.box
        assert right - left == bottom - top
        assert sides(one.size, source.options.size)[0] <= right - left <= sides(one.size, source.options.size)[1]
    assert len({(scene.ground, scene.texture) for scene, _, _ in described}) == 15


def test_four_objects_are_placed_in_the_smallest_picture():
    options = SceneOptions(size=24, max_objects=4)
    arrangement, _ = compose(options, "train", np.arange(4000))
    four = arrangement.count == 4
    assert (arrangement.side[four] > 0).all()
    assert (arrangement.left + arrangement.side)[four].max() <= 23


def test_training_never_shows_a_held_out_pair_and_shows_each_half_of_it():
    options = SceneOptions(max_objects=2)
    out = {tuple(pair) for pair in held_out_pairs(options).tolist()}
    assert len(out) == 8
    assert not out & {tuple(pair) for pair in training_pairs(options).tolist()}
    for split in ("train", "validation", "test"):
        seen = set().union(*(pairs_of(scene) for scene, _, _ in SceneSource(options, split).described(range(1500))))
        assert len(seen) == 56
        assert not seen & out
    held = [pairs_of(scene) for scene, _, _ in SceneSource(options, "held_out").described(range(1500))]
    assert all(pairs & out for pairs in held)
    assert set().union(*held) >= out


def test_held_out_pairs_do_not_depend_on_the_seed():
    np.testing.assert_array_equal(held_out_pairs(SceneOptions(seed=0)), held_out_pairs(SceneOptions(seed=5)))


def test_a_picture_is_its_graph(source, described):
    """Objects have their colour inside their masks; outside the boxes, the picture is grey and within its contrast
    level."""
    images = np.stack([example["image"] for example in source.__getitems__(np.arange(300))])
    for image, (scene, _, _) in zip(images, described, strict=True):
        grey = np.ptp(image.astype(int), axis=-1) == 0
        outside = np.ones_like(grey)
        for one, mask in zip(scene.objects, masks(scene), strict=True):
            left, top, right, bottom = one.box
            outside[top:bottom, left:right] = False
            whole = stamp(one.shape, right - left) == 1
            assert (image[top:bottom, left:right][whole] == COLOURS[one.colour]).all()
            assert not grey[mask].any()
        assert grey[outside].all()
        low, high = GROUNDS[scene.ground]
        assert low - CONTRAST[1] - 1 <= image[outside].min() <= image[outside].max() <= high + CONTRAST[1] + 1


def test_plain_grounds_are_of_one_grey():
    options = SceneOptions(textured=False, max_objects=1)
    assert (compose(options, "train", np.arange(200))[0].texture == 0).all()
    for image in paint(compose(options, "train", np.arange(20))[0]):
        assert len(np.unique(image[np.ptp(image.astype(int), axis=-1) == 0])) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stamp_fills_its_box_and_has_the_area_of_its_shape(shape):
    fine = stamp(shape, 120)
    assert min(fine.max(0).min(), fine.max(1).min()) > 0
    for side in (6, 9, 17):
        assert stamp(shape, side).mean() == pytest.approx(fine.mean(), abs=0.01)


def test_areas_in_closed_form():
    areas = {"circle": np.pi / 4, "square": 1, "triangle": 0.5, "ring": np.pi / 4 * (1 - 0.55**2), "diamond": 0.5}
    areas["cross"] = 2 * 0.34 - 0.34**2
    for shape, area in areas.items():
        assert stamp(shape, 64).mean() == pytest.approx(area, abs=1e-3), shape


def test_draws_are_uniform_and_do_not_depend_on_the_others():
    draws = Draws.of(0, 0, np.arange(1000))
    numbers = draws.uniform(100)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert np.histogram(numbers, 20, (0, 1))[0] == pytest.approx(np.full(20, 5000), rel=0.05)
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.1
    np.testing.assert_array_equal(Draws.of(0, 0, np.array([17])).uniform(100)[0], numbers[17])
    np.testing.assert_array_equal(draws.only([3, 4]).uniform(5), draws.uniform(5)[[3, 4]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "labels"}, "'label'.*did you mean 'label'"),
        ({"max_objects": 5}, "max_objects must be a whole number of at least 1 and of at most 4, it is 5"),
        ({"max_objects": 0}, "max_objects must be"),
        ({"size": 16}, "size must be a whole number of at least 24"),
        ({"held_out": 0.9}, "held_out must be"),
        ({"shapes": ("circle", "blob")}, "shapes must be"),
        ({"shapes": ("circle", "circle")}, "shapes must be one or several names, each once"),
        ({"colours": ()}, "colours must be one or several"),
        ({"shapes": ("circle",), "held_out": 0.5}, "would show nothing that is"),
        ({"num_examples": 0}, "num_examples must be"),
        ({"seed": -1}, "seed must be"),
        ({"sise": 32}, "unknown argument.*did you mean 'size'"),
        ({"split": "trian"}, "has the splits train, validation, test, held_out, not 'trian'"),
        ({"split": "held_out", "held_out": 0.0}, "the split 'held_out' is empty"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        data.open_dataset("scenes", **options)
    assert "\n" not in str(caught.value)


def test_through_the_pipeline():
    pipeline = data.Pipeline(dataset="scenes", batch_size=16, options={"size": 24, "num_examples": 100})
    batch = next(pipeline.batches())
    assert batch["data"].shape == (16, 24, 24, 3)
    assert (pipeline.info.num_classes, pipeline.info.num_examples) == (0, 100)
    streamed = data.Pipeline(dataset="scenes", batch_size=16, options={"size": 24, "num_examples": 100}, memory_limit=0)
    np.testing.assert_array_equal(next(streamed.batches())["data"], batch["data"])
    assert pipeline.info.fingerprint != data.open_dataset("scenes", size=24, num_examples=101).info.fingerprint
