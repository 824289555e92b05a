"""Image grids: every pixel is in its place and readable, and files are written completely."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import RunError, UserError
from experiments.evaluating import pictures


def _tiles(n, side=8, channels=1):
    """Images of which image i has the uniform brightness i."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), (n, side, side, channels)).copy()


def _values(grid, side, gap=4, head=0):
    """The brightness in the middle of every cell, and -1 for empty cells."""
    cells = grid[head + side // 2 :: side + gap, side // 2 :: side + gap]
    return np.where(cells[..., 3] == 255, cells[..., 0].astype(int), -1)


def test_a_grid_reads_row_by_row():
    grid = pictures.make_grid(_tiles(7), columns=3, scale=1)
    assert grid.shape == (3 * 8 + 2 * 4, 3 * 8 + 2 * 4, 4)
    np.testing.assert_array_equal(_values(grid, 8), [[0, 1, 2], [3, 4, 5], [6, -1, -1]])


@pytest.mark.parametrize(("side", "scale"), [(8, 6), (28, 2), (32, 2), (48, 1), (256, 1)])
def test_small_images_are_enlarged_to_a_readable_size(side, scale):
    assert pictures.make_grid(_tiles(1, side)).shape == (side * scale, side * scale, 4)


def test_enlarging_repeats_pixels():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    grid = pictures.make_grid(image, scale=3)
    np.testing.assert_array_equal(grid[1::3, 1::3, :3], image[0])
    np.testing.assert_array_equal(grid[::3, ::3, :3], image[0])


def test_with_labels_a_column_is_a_class():
    labels = np.array([2, 0, 1, 0, 2, 2])
    grid = pictures.make_grid(_tiles(6, side=48), labels=labels, scale=1)
    head = grid.shape[0] - (3 * 48 + 2 * 4)
    assert head > 0  # the captions
    np.testing.assert_array_equal(_values(grid, 48, head=head), [[1, 2, 0], [3, -1, 4], [-1, -1, 5]])
    assert grid[:head, :, 3].any()


def test_few_classes_with_many_images_make_no_long_strip():
    """Two classes of 25 images fill three columns each and nine rows, row by row within a class."""
    labels = np.arange(50) % 2
    grid = pictures.make_grid(_tiles(50, side=48), labels=labels, scale=1)
    head = grid.shape[0] - (9 * 48 + 8 * 4)
    values = _values(grid, 48, head=head)
    assert np.shape(values) == (9, 6)
    assert [list(row) for row in values[:2]] == [[0, 2, 4, 1, 3, 5], [6, 8, 10, 7, 9, 11]]
    strip = pictures.make_grid(_tiles(50, side=48), labels=labels, scale=1, columns=2)
    assert strip.shape[1] == 2 * 48 + 4, "columns that are asked for stay what they are"
    one = pictures.make_grid(_tiles(3, side=48), labels=np.array([0, 0, 1]), scale=1)
    assert one.shape[1] == 2 * 48 + 4


def test_many_classes_go_into_blocks():
    grid = pictures.make_grid(_tiles(40, side=16), labels=np.arange(40), columns=10, scale=1)
    assert grid.shape[1] == 10 * 16 + 9 * 4


def test_an_animation_keeps_every_pixel_and_holds_its_end(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 48, 48, 3)).astype(np.uint8)
    pictures.save_animation(frames, tmp_path / "x.webp", seconds=1.0, hold=2.0)
    film = Image.open(tmp_path / "x.webp")
    assert (film.n_frames, film.info["loop"]) == (5, 0)
    shown = []
    for i, images in enumerate(frames):
        film.seek(i)
        film.load()
        shown.append(film.info["duration"])
        grid = pictures.make_grid(images)
        opaque = grid[..., 3] > 0
        np.testing.assert_array_equal(np.asarray(film.convert("RGBA"))[opaque], grid[opaque])
    assert shown == [200, 200, 200, 200, 2200]
    with pytest.raises(UserError, match="at least one frame"):
        pictures.save_animation([], tmp_path / "none.webp")


def test_balanced_labels():
    np.testing.assert_array_equal(pictures.balanced_labels(5, 3), [0, 1, 2, 0, 1])


def test_floats_are_read_as_minus_one_to_one():
    floats = np.array([-2.0, -1.0, 0.0, 1.0, 3.0, np.nan, np.inf]).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(pictures.as_bytes(floats).ravel(), [0, 0, 128, 255, 255, 0, 255])
    every = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(pictures.as_bytes(every / 127.5 - 1), every)


def test_a_saved_grid_reads_back_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "samples" / "step_0000100.png"
    pictures.save_grid(_tiles(4), path, columns=2, scale=1)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pictures.make_grid(_tiles(4), columns=2, scale=1))
    assert [p.name for p in path.parent.iterdir()] == ["step_0000100.png"]


def test_neighbours_come_closest_first(tmp_path):
    samples, neighbours = _tiles(3, 48), _tiles(3, 48) + 100
    path = tmp_path / "neighbours.png"
    pictures.save_neighbours(samples, neighbours, path, distances=np.array([0.3, 0.1, 0.2]), columns=10, scale=1)
    grid = np.asarray(Image.open(path))
    head = grid.shape[0] - (2 * 48 + 4)
    np.testing.assert_array_equal(_values(grid, 48, head=head), [[1, 2, 0], [101, 102, 100]])


def test_what_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "samples").write_text("a file where a directory should be")
    with pytest.raises(RunError, match="could not write"):
        pictures.save_grid(_tiles(1), tmp_path / "samples" / "x.png")


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 8, 8, 1), (2, 8, 8, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(UserError, match="height"):
        pictures.make_grid(np.zeros(shape, np.uint8))


def test_labels_must_match():
    with pytest.raises(UserError, match="labels"):
        pictures.make_grid(_tiles(3), labels=np.zeros(2, np.int32))
