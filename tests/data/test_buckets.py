"""Buckets take turns so that all examples are read equally often, at any step and on any host; errors are named."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.conditioning import Sizes
from diffusion_jax.data import Pipeline
from diffusion_jax.data.buckets import nearest, sides_of, turn
from diffusion_jax.data.pictures import read_image, read_size
from diffusion_jax.data.scenes.composing import SceneOptions, compose
from diffusion_jax.data.scenes.painting import paint, stretched
from diffusion_jax.data.transforms import Cover
from diffusion_jax.errors import UserError
from experiments.building.conditions import Preparation

SHAPES = ("32x32", "24x40", "40x24")


def scenes(**fields):
    options = {"size": 32, "num_examples": 40, "num_test": 8, "pictures": SHAPES}
    return Pipeline(
        **{"dataset": "scenes", "batch_size": 4, "image_size": 32, "buckets": SHAPES, "options": options} | fields
    )


@pytest.mark.parametrize("counts", [(7,), (5, 3, 1), (4, 4), (1, 20, 6)])
def test_batches_take_turns_by_when_they_are_due(counts):
    total = sum(counts)
    events = sorted((Fraction(2 * k + 1, 2 * n), b, k) for b, n in enumerate(counts) for k in range(2 * n))
    assert [turn(step, counts) for step in range(2 * total)] == [(b, k) for _, b, k in events]
    for step in (10**9, 10**12 + 7):  # far steps are computed directly
        bucket, batch = turn(step, counts)
        assert abs(batch - step * counts[bucket] / total) <= len(counts)


def test_every_example_is_read_equally_often():
    """40 steps of 4 rows read each of 40 examples four times, and every example of a bucket once before any twice."""
    reader = scenes().reader()
    read = [[] for _ in reader.readers]
    for step in range(40):
        bucket, batch = turn(step, reader.counts)
        read[bucket] += reader.readers[bucket].examples(4 * batch, 4 * batch + 4).tolist()
    assert sum(reader.counts) == 40
    for examples, count in zip(read, reader.counts, strict=True):
        assert sorted(examples) == sorted([*range(count)] * 4)
        assert len(set(examples[:count])) == count


@pytest.mark.parametrize("start", [0, 1, 7, 23])
def test_the_stream_goes_on_at_any_step_and_on_any_host(start):
    whole, batches = scenes().reader(), scenes().batches(start_step=start)
    for step in range(start, start + 4):
        batch = next(batches)["data"]
        np.testing.assert_array_equal(batch, whole[step]["data"])
        parts = [scenes().reader(host, 2)[step]["data"] for host in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        assert batch.shape[1:3] in scenes().shapes


def test_order_of_a_bucket_does_not_depend_on_the_others():
    one, all_three = scenes(buckets=SHAPES[:1]).reader().readers[0], scenes().reader().readers[0]
    assert one.seed == all_three.seed
    assert one.num_examples == 40 > all_three.num_examples


def test_the_nearest_shape_then_the_nearest_size():
    buckets = sides_of(("32x32", "64x64", "32x64"), "b")
    sizes = np.array([(100, 100), (30, 31), (300, 500), (10, 21), (45, 45)])
    assert nearest(sizes, buckets).tolist() == [1, 0, 2, 2, 0]


def test_pictures_are_covered_and_cut_in_the_middle():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (90, 200, 3))
    cover = Cover(height=30, width=40)
    made = cover(ramp)
    assert made.shape == (30, 40, 3)
    assert cover.start(90, 200) == (0, 13)
    np.testing.assert_allclose(made[15, :, 0].mean(), 99.5, atol=2)  # the middle of the ramp
    np.testing.assert_array_equal(cover(made), made)


def test_a_folder_of_pictures_of_all_shapes(tmp_path):
    """Sizes count after the EXIF rotation, and the network receives the crop of each picture."""
    draw = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 60), (60, 40), (40, 40), (50, 70)]):
        picture = Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))
        exif = picture.getexif()
        exif[0x0112] = 6 if number == 3 else 1
        picture.save(tmp_path / f"{number}.jpg", exif=exif)
    for path in tmp_path.iterdir():
        assert read_size(str(path)) == read_image(str(path)).shape[:2]
    pipeline = Pipeline(dataset=f"folder:{tmp_path}", batch_size=2, image_size=32, buckets=SHAPES, shuffle=False)
    pipeline = pipeline.prepared_by(Preparation(parts=(Sizes(count=6).beside((32, 32)),)))
    assert pipeline.reader().counts == (1, 1, 2)  # the EXIF tag rotates the last picture upright
    assert pipeline.arrays()[0].shape == (4, 32, 32, 3)
    batches = [pipeline.reader()[step] for step in range(4)]
    tall = next(batch for batch in batches if batch["data"].shape[1:3] == (40, 24))
    assert tall["sizes"].tolist() == [[60, 40, 0, 1, 40, 24], [70, 50, 0, 2, 40, 24]]


@pytest.mark.parametrize("sides", [(24, 24), (24, 48), (56, 32)])
def test_stretched_scenes_keep_their_objects_apart_and_inside(sides):
    options = SceneOptions(size=min(sides), max_objects=4)
    scenes, _ = compose(options, "train", np.arange(200))
    wide = stretched(scenes, sides)
    images = paint(wide, sides)
    assert images.shape == (200, *sides, 3)
    if sides[0] == sides[1]:
        np.testing.assert_array_equal(images, paint(scenes))
    for row in range(200):
        before, after = scenes.scene(row).objects, wide.scene(row).objects
        for number, one in enumerate(after):
            left, top, right, bottom = one.box
            assert 0 <= left < right <= sides[1]
            assert 0 <= top < bottom <= sides[0]
            for other, then in zip(after[:number], before[:number], strict=True):
                for axis in (0, 1):
                    was = then.box[axis + 2] <= before[number].box[axis]
                    assert not was or other.box[axis + 2] <= one.box[axis]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"buckets": ("32",)}, "data.buckets has '32', which is not a height and width"),
        ({"buckets": ("32x32", "32x32")}, "data.buckets has a size twice"),
        ({"image_size": None}, "data.buckets needs data.image_size"),
        ({"crop": "adm"}, "data.crop='adm' cuts squares"),
        ({"options": {"pictures": ("16x32",)}}, "sides of 24 to 2048 pixels, not 16x32"),
        ({"options": {"pictures": SHAPES, "control": "edges"}}, "control pictures need square scenes"),
        (
            {"dataset": "synthetic_latents", "options": {"size": 32}},
            "data.buckets need pictures, but the data is latents",
        ),
    ],
)
def test_what_no_bucket_takes_is_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        scenes(**fields).reader()
    assert "\n" not in str(error.value)


def test_no_buckets_of_a_json_config_are_those_of_a_python_one():
    """A pipeline turns the list from a JSON config into a tuple, so that it stays hashable."""
    of_json, of_python = (Pipeline(dataset="digits", batch_size=4, buckets=empty) for empty in ([], ()))
    assert of_json == of_python
    assert hash(of_json) == hash(of_python)
