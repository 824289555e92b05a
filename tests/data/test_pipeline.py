"""The batch at a step depends only on (seed, step): not on resuming, hosts, workers, threads, memory or disk."""

import dataclasses
import errno
import itertools

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data import reading, transforms
from diffusion_jax.data.order import permutation, random_bits
from diffusion_jax.data.sources import storage_failed
from diffusion_jax.errors import RunError, UserError


@pytest.fixture(scope="session")
def pipeline(digits_dir):
    return data.Pipeline(dataset="digits", data_dir=digits_dir, batch_size=48, flip=True, seed=3)


def take(stream, count):
    return list(itertools.islice(stream, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def fingerprint(images):
    """A value that is equal for an image and its mirror image, and differs between digits."""
    return [min(image.tobytes(), image[:, ::-1].tobytes()) for image in np.asarray(images)]


def test_batch_format(pipeline):
    batch = next(pipeline.batches())
    assert batch["data"].shape == (48, 8, 8, 1)
    assert batch["data"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    assert (batch["data"].min(), batch["data"].max()) == (-1, 1)
    assert pipeline.info.spec.shape == (8, 8, 1)
    assert (pipeline.info.num_examples, pipeline.info.num_classes) == (1437, 10)


@pytest.mark.parametrize("start", [1, 7, 29, 30, 1000])
def test_resume_at_any_step(pipeline, start):
    assert_same(take(pipeline.batches(start), 3), [pipeline.reader()[start + i] for i in range(3)])


def test_stream_is_the_reader_in_order(pipeline):
    assert_same(take(pipeline.batches(), 40), [pipeline.reader()[step] for step in range(40)])


@pytest.mark.parametrize("hosts", [1, 2, 4, 48])
def test_hosts_hold_contiguous_rows_of_the_global_batch(pipeline, hosts):
    streams = [pipeline.batches(28, process_index=h, process_count=hosts) for h in range(hosts)]
    for step in range(28, 32):  # across the end of the first epoch
        parts = [next(stream) for stream in streams]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert_same([joined], [pipeline.reader()[step]])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_an_epoch_visits_every_example_once(pipeline, hosts):
    everything = sorted(fingerprint(data.to_unit_range(pipeline.arrays()[0])))
    orders = []
    for epoch in range(2):
        first = epoch * 1437
        seen = {}
        for host in range(hosts):
            reader = pipeline.reader(host, hosts)
            local = 48 // hosts
            for step in range(first // 48, -(-(first + 1437) // 48)):
                for j, print_ in enumerate(fingerprint(reader[step]["data"])):
                    position = step * 48 + host * local + j
                    if first <= position < first + 1437:
                        seen[position] = print_
        assert sorted(seen.values()) == everything
        orders.append([seen[position] for position in sorted(seen)])
    assert orders[0] != orders[1]


def test_batch_larger_than_the_data(pipeline):
    reader = dataclasses.replace(pipeline, batch_size=3000).reader()
    chosen = reader.examples(0, 3000)
    np.testing.assert_array_equal(np.sort(chosen[:1437]), np.arange(1437))
    np.testing.assert_array_equal(np.sort(chosen[1437:2874]), np.arange(1437))


def test_seeds_differ_in_order_and_flips(pipeline):
    other = dataclasses.replace(pipeline, seed=4)
    assert (pipeline.reader().examples(0, 48) != other.reader().examples(0, 48)).any()
    assert (random_bits(3, 0, 48) != random_bits(4, 0, 48)).any()


def test_random_bits_belong_to_the_position():
    whole = random_bits(5, 0, 100)
    np.testing.assert_array_equal(random_bits(5, 37, 41), whole[37:41])
    assert len(np.unique(whole)) == whole.size
    assert abs((random_bits(0, 0, 10_000)[:, 0] >> np.uint64(63)).mean() - 0.5) < 0.02


def test_epochs_and_seeds_have_unrelated_orders():
    """All orders of seeds and epochs differ; epoch 1 of seed 0 is not epoch 0 of seed 1."""
    orders = {permutation(seed, epoch, 100).tobytes() for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_order_is_pinned():
    """The order is pinned: a run resumed after an upgrade must see the same data."""
    assert permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert random_bits(0, 5, 6)[0, 0] == 14654298653947466115


def test_half_of_the_images_are_flipped(pipeline):
    plain = dataclasses.replace(pipeline, flip=False)
    flipped = 0
    for step in range(20):
        image, original = pipeline.reader()[step]["data"], plain.reader()[step]["data"]
        mirrored = (image == original[:, :, ::-1]).all((1, 2, 3)) & (image != original).any((1, 2, 3))
        assert (mirrored | (image == original).all((1, 2, 3))).all()
        flipped += mirrored.sum()
    assert 400 < flipped < 560  # of 960


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_reading_from_disk_gives_the_same_stream(pipeline, prefetch):
    streamed = dataclasses.replace(pipeline, memory_limit=0, prefetch=prefetch)
    assert not isinstance(streamed.reader().source, data.ArraySource)
    assert_same(take(streamed.batches(29), 3), take(pipeline.batches(29), 3))


@pytest.mark.parametrize(("workers", "memory_limit"), [(1, 0), (2, 2**30)])
def test_worker_processes_give_the_same_stream(pipeline, workers, memory_limit):
    parallel = dataclasses.replace(pipeline, num_workers=workers, memory_limit=memory_limit)
    stream = parallel.batches(28, process_index=1, process_count=2)
    expected = pipeline.batches(28, process_index=1, process_count=2)
    assert_same(take(stream, 5), take(expected, 5))


def test_arrays(pipeline):
    held_out = dataclasses.replace(pipeline, split="test")
    images, labels = held_out.arrays()
    assert images.shape == (360, 8, 8, 1)
    assert images.dtype == np.uint8
    few, few_labels = dataclasses.replace(held_out, image_size=12, crop="pad").arrays(max_examples=36)
    np.testing.assert_array_equal(few[:, 2:10, 2:10], images[::10])
    np.testing.assert_array_equal(few_labels, labels[::10])
    np.testing.assert_array_equal(pipeline.arrays("test", max_examples=10_000)[0], images)


def test_synthetic_latents():
    pipeline = data.Pipeline(dataset="synthetic_latents", batch_size=500, options={"size": 8, "num_classes": 4})
    batch = next(pipeline.batches())
    assert batch["data"].shape == (500, 8, 8, 4)
    assert batch["data"].dtype == np.float32
    assert pipeline.info.spec.kind == "latents"
    assert abs(batch["data"].mean()) < 0.15
    assert abs(batch["data"].std() - 1) < 0.1
    first = batch["data"][batch["label"] == 0]
    assert abs((first - first.mean(0)).std() - 0.5**0.5) < 0.02  # half of the variance lies within a class
    again = data.open_dataset("synthetic_latents", size=8, num_classes=4).source[7]
    np.testing.assert_array_equal(
        again["image"], data.open_dataset("synthetic_latents", size=8, num_classes=4).source[7]["image"]
    )
    other = data.open_dataset("synthetic_latents", split="test", size=8, num_classes=4).source[7]
    assert (other["image"] != again["image"]).all()


def test_tfds_data_through_the_pipeline(mock_tfds):
    pipeline = data.Pipeline(dataset="cifar10", batch_size=4, image_size=32, flip=True)
    assert (pipeline.info.num_classes, pipeline.info.spec.kind) == (10, "pixels")
    assert_same(take(pipeline.batches(2), 1), [pipeline.reader()[2]])
    assert next(pipeline.batches())["data"].shape == (4, 32, 32, 3)


@pytest.mark.parametrize("crop", ["adm", "edm"])
def test_images_of_different_sizes_are_cropped(mock_tfds, crop):
    pipeline = data.Pipeline(dataset="imagenet2012", batch_size=4, image_size=16, crop=crop)
    assert (pipeline.info.spec.shape, pipeline.info.num_classes) == ((16, 16, 3), 1000)
    assert next(pipeline.batches())["data"].shape == (4, 16, 16, 3)
    with pytest.raises(UserError, match=r"differ in size: set data\.image_size"):
        _ = dataclasses.replace(pipeline, image_size=None, crop="none").info


def test_data_without_classes_has_no_label(mock_tfds):
    pipeline = data.Pipeline(dataset="celeb_a", batch_size=2, image_size=8, crop="adm")
    assert pipeline.info.num_classes == 0
    assert set(next(pipeline.batches())) == {"data"}
    assert pipeline.arrays()[1] is None


def test_grey_as_colour(pipeline):
    colour = dataclasses.replace(pipeline, channels=3)
    assert colour.info.spec.shape == (8, 8, 3)
    np.testing.assert_array_equal(colour.reader()[0]["data"][..., 1:2], pipeline.reader()[0]["data"])


def test_pipeline_is_hashable_and_built_from_a_mapping(digits_dir):
    config = {"dataset": "digits", "batch_size": 2, "data_dir": digits_dir, "options": {"x": [1]}}
    assert hash(data.Pipeline.from_config(config)) == hash(data.Pipeline(**config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batchsize": 2}, "did you mean 'batch_size'"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "integer"),
        ({"image_size": -4}, "image_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"crop": "center", "image_size": 4}, "unknown crop 'center'"),
        ({"crop": "adm"}, r"needs data\.image_size"),
        ({"channels": 2}, "channels"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        data.Pipeline.from_config({"dataset": "digits", "batch_size": 8, **fields})


def test_wrong_use(pipeline):
    with pytest.raises(UserError, match="48 is not divisible by the 5 processes"):
        pipeline.batches(process_count=5)
    with pytest.raises(UserError, match="process_index 2"):
        pipeline.batches(process_index=2, process_count=2)
    with pytest.raises(UserError, match="start_step"):
        pipeline.batches(-1)
    with pytest.raises(UserError, match="8x8, not 16x16"):
        dataclasses.replace(pipeline, image_size=16).batches()
    with pytest.raises(UserError, match=r"unknown argument.*path"):
        _ = dataclasses.replace(pipeline, options={"path": "x"}).info


class Storage:
    """A source in which some reads fail."""

    def __init__(self, failures, error):
        self.failures, self.error = failures, error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.failures:
            self.failures -= 1
            raise self.error
        return {"image": np.full((2, 2, 1), index, np.uint8)}


def read(source, monkeypatch):
    monkeypatch.setattr(reading, "PAUSES", (0.0, 0.0))
    crop = transforms.crops.build("none", size=None)
    return reading.TransformedSource(source, crop, (2, 2, 1), np.dtype(np.uint8)).read([3, 1])["image"]


def test_a_read_that_failed_is_tried_again(monkeypatch):
    images = read(Storage(2, OSError(errno.EIO, "not now")), monkeypatch)
    np.testing.assert_array_equal(images[:, 0, 0, 0], [3, 1])


def test_storage_that_stays_away_ends_the_run(monkeypatch):
    with pytest.raises(RunError, match=r"could not be read, 3 times in 0 s: .*not now"):
        read(Storage(9, OSError(errno.EIO, "not now")), monkeypatch)


def test_wrong_content_is_not_tried_again(monkeypatch):
    source = Storage(9, UserError("damaged"))
    with pytest.raises(UserError, match="damaged"):
        read(source, monkeypatch)
    assert source.failures == 8


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (OSError(errno.EIO, "io"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (OSError("image file is truncated"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_what_counts_as_failed_storage(error, failed):
    assert storage_failed(error) is failed


def test_images_larger_than_the_limit_are_put_into_a_file(pipeline, tmp_path):
    small = dataclasses.replace(pipeline, memory_limit=1000)
    for split in ("train", "test", "train[:50%]"):
        images, labels = small.arrays(split, max_examples=600, spill=tmp_path / "spill")
        expected = pipeline.arrays(split, max_examples=600)
        assert isinstance(images, np.memmap)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    assert len(list((tmp_path / "spill").iterdir())) == 3
    assert not isinstance(small.arrays("test")[0], np.memmap)
    assert not isinstance(pipeline.arrays("test", spill=tmp_path)[0], np.memmap)


def test_features_belong_to_the_fingerprint(digits_dir, tmp_path, monkeypatch):
    fields = dict(dataset="digits", data_dir=digits_dir, batch_size=8)
    found = {data.Pipeline.from_config(fields).info.fingerprint}
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in [("a", 0), ("b", 0), ("c", 1)]:
        np.save(tmp_path / f"{name}.npy", np.full((1437, 2, 3), value, np.float16))
        found.add(data.Pipeline.from_config({**fields, "features": f"~/{name}.npy"}).info.fingerprint)
    assert len(found) == 3
