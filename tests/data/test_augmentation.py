"""Augmentations against the authors' code and against plain image operations, and in the pipeline and in training."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.augmentation import WORDS, EdmAugmentation, Transformations, augmentations, transformed, warp
from diffusion_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "edm_augmentation.npz"


def words(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, (count, WORDS), dtype=np.uint64)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (5, 12, 12, 3)).astype(np.float32)


@pytest.fixture
def pipeline(digits_dir):
    spec = {"name": "edm", "probability": 0.2}
    return data.Pipeline(dataset="digits", data_dir=digits_dir, batch_size=48, augmentation=spec, seed=3)


def test_as_the_authors_code_does_it():
    """Images and drawn parameters of the golden file give its labels and results (tests/golden/data/README.md)."""
    golden = np.load(GOLDEN)
    chosen = Transformations(**{f.name: golden[f.name] for f in dataclasses.fields(Transformations)})
    labels = chosen.labels(vertical_flip=True, rotation=True)
    np.testing.assert_allclose(labels, golden["labels"], atol=1e-6)
    np.testing.assert_allclose(transformed(golden["images"], chosen), golden["augmented"], atol=2e-5)


@pytest.mark.parametrize("name", list(augmentations))
def test_each_says_what_it_did_and_depends_on_an_example_alone(name, images):
    augmentation = augmentations.example(name)
    bits = words(len(images))
    out, labels = augmentation(images, bits)
    assert (out.shape, out.dtype) == (images.shape, np.float32)
    assert (labels.shape, labels.dtype) == ((len(images), augmentation.num_labels), np.float32)
    for row in range(len(images)):
        alone, label = augmentation(images[row : row + 1], bits[row : row + 1])
        np.testing.assert_allclose(alone[0], out[row], atol=1e-6)
        np.testing.assert_array_equal(label[0], labels[row])
    untouched = ~labels.any(-1)
    np.testing.assert_array_equal(out[untouched], images[untouched])


def test_the_filters_return_an_image_that_is_not_moved(images):
    identity = np.broadcast_to(np.eye(2, 3), (len(images), 2, 3))
    np.testing.assert_allclose(warp(images, identity), images, atol=1e-6)


def test_shift_by_whole_pixels_moves_them(images):
    matrices = np.tile(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]), (len(images), 1, 1))
    np.testing.assert_allclose(warp(images, matrices)[:, 1:, :-2], images[:, :-1, 2:], atol=1e-5)


def test_quarter_turn_turns(images):
    """A quarter turn of a smooth image is exact up to the filter's offset of half a pixel."""
    grid = np.linspace(-1, 1, 24)
    smooth = (np.exp(-((grid[:, None] - 0.3) ** 2 + 2 * (grid[None] + 0.1) ** 2) * 3)[None, ..., None]).astype(
        np.float32
    )
    turn = np.array([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    expected = np.rot90(smooth[0, ..., 0])
    assert np.abs(warp(smooth, turn)[0, ..., 0] - expected).max() < 0.02 < np.abs(smooth[0, ..., 0] - expected).max()


def test_how_often():
    chosen = EdmAugmentation(probability=0.12).draw(words(20_000))
    for name, share in dict(mirror=0.5, flip=0.06, scale=0.12, rotation=0.12, stretch=0.12, direction=0.5).items():
        assert abs((getattr(chosen, name) != 0).mean() - share) < 0.012, name
    moved = chosen.shift[chosen.shift[:, 0] != 0]
    assert abs(len(moved) / 20_000 - 0.12) < 0.01
    assert abs(moved.std() - 1) < 0.05
    assert abs(chosen.scale[chosen.scale != 0].std() - 1) < 0.05
    assert abs(chosen.rotation).max() < np.pi
    gates = np.stack([chosen.flip, chosen.scale, chosen.rotation, chosen.stretch, chosen.shift[:, 0]]) != 0
    assert abs(np.corrcoef(gates) - np.eye(5)).max() < 0.03, "one is drawn whatever the others are"


def test_without_turning_and_upside_down():
    augmentation = EdmAugmentation(probability=1.0, vertical_flip=False, rotation=False)
    chosen = augmentation.draw(words(100))
    assert not chosen.rotation.any()
    assert not chosen.flip.any()
    assert augmentation.num_labels == 6


def test_bad_input(images):
    with pytest.raises(UserError, match="probability"):
        EdmAugmentation(probability=1.5)
    with pytest.raises(UserError, match="square"):
        EdmAugmentation()(images[:, :8], words(5))
    with pytest.raises(UserError, match="did you mean 'edm'"):
        data.Pipeline(dataset="digits", batch_size=4, augmentation="emd")


def test_in_the_pipeline(pipeline):
    """The augmented batch is the same on one host and on two, and augment=False switches the augmentation off."""
    assert pipeline.augment_labels == 9
    batch = pipeline.reader()[4]
    plain = dataclasses.replace(pipeline, augmentation="none").reader()[4]
    np.testing.assert_array_equal(batch["label"], plain["label"])
    changed = (batch["data"] != plain["data"]).any((1, 2, 3))
    np.testing.assert_array_equal(changed, batch["augment"].any(-1))
    assert 0.5 < changed.mean() < 1
    halves = [pipeline.reader(host, 2)[4] for host in (0, 1)]
    for name, value in batch.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), value)
    other = dataclasses.replace(pipeline, seed=4).reader()[4]
    assert (other["augment"] != batch["augment"]).any()
    assert not dataclasses.replace(pipeline, augment=False).reader()[4]["augment"].any()
    assert "augment" not in plain


def test_network_is_told_also_where_its_class_is_withheld():
    """The augmentation labels remain when the class is dropped; otherwise augmented images would pass as plain ones."""
    from diffusion_jax import conditioning, models, objectives, schedulers, systems, training
    from diffusion_jax.rng import BatchKey, stream_key
    from diffusion_jax.specs import DataSpec

    network = models.MODELS.build(
        {"name": "unet", "base_channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1,
         "attention_resolutions": (), "augment_channels": 9},
        image_size=8, image_channels=1, num_classes=10,
    )  # fmt: skip
    model = systems.Model(
        data=DataSpec(kind="pixels", shape=(8, 8, 1)),
        network=network,
        process=schedulers.Parameterization.build(schedule="cosine", prediction="epsilon", time_input="discrete_index"),
        conditioning=conditioning.Conditioning(
            parts=(conditioning.Label(num_classes=10), conditioning.Numbers(slot="augment", count=9)),
            dropout={("label",): 1.0},
        ),
    )
    trainable = training.Trainable(model=model, objective=objectives.OBJECTIVES.build("denoising"))
    params = jax.tree.map(lambda p: p + 0.1, model.init_params(jax.random.key(0), models.init_params))
    state = training.TrainState(step=jnp.int32(0), params=params, opt_state=(), ema={}, nonfinite_step=jnp.int32(-1))
    key = BatchKey(stream_key(0, "train"), jnp.arange(4), 4)

    def loss(label, augment):
        batch = {"data": jnp.zeros((4, 8, 8, 1)), "label": jnp.full((4,), label), "augment": jnp.full((4, 9), augment)}
        return float(trainable.loss(params, state, batch, key)[0])

    assert loss(3, 0.5) == loss(7, 0.5)
    assert loss(3, 0.5) != loss(3, 0.0)
