"""All registered conditioners, and the joint dropout of conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import CONDITIONERS, Conditioning, Hole, Label, Numbers, Source
from diffusion_jax.errors import UserError
from diffusion_jax.rng import BatchKey
from diffusion_jax.specs import ConditionSpec, mask_name

SIZE = 2000
TWO = (Label(num_classes=5), Numbers(slot="sizes", count=2, role="asked"), Numbers(slot="augment", count=3))


def keys(size=SIZE, seed=0):
    return BatchKey.create(jax.random.key(seed), size)


WORDS = ("a", "red", "star")


def raw(part, size):
    """Random raw inputs from data or users, under the names that `prepare` expects."""
    draw = np.random.default_rng(0)
    said = {
        "label": lambda: draw.integers(0, 3, size).tolist(),
        "augment": lambda: draw.standard_normal((size, 2)).astype(np.float32).tolist(),
        "source": lambda: list(draw.integers(0, 256, (size, 4, 4, 2)).astype(np.uint8)),
        "data": lambda: list(draw.uniform(-1, 1, (size, 4, 4, 2)).astype(np.float32)),
        "mask": lambda: list(draw.integers(0, 2, (size, 4, 4, 1)).astype(np.float32)),
        "text": lambda: [" ".join(draw.choice(WORDS, n)) for n in draw.integers(0, 4, size)],
    }
    return {name: said[name]() for name in part.prepares}


def raw_batch(part, size):
    return part.prepare(raw(part, size))


@pytest.fixture(params=list(CONDITIONERS))
def part(request):
    return CONDITIONERS.example(request.param)


def test_slots_are_as_they_say(part):
    params = part.init_params(jax.random.key(0))
    for slots in (part(params, raw_batch(part, 4), 4), part.null(params, 4)):
        masks = {mask_name(name) for name, spec in part.gives.items() if spec.has_mask}
        assert set(slots) == set(part.gives) | masks
        for name in masks:
            assert slots[name].dtype == bool
            assert slots[name].shape[0] == 4
        for name, value in slots.items():
            if name in masks:
                continue
            assert value.dtype == part.gives[name].dtype
            assert value.shape[0] == 4
            assert part.gives[name].fits(value.shape[1:])


def test_hashable_and_pure(part):
    assert hash(part) == hash(part)
    params = part.init_params(jax.random.key(0))
    once, again = (jax.jit(lambda batch: part(params, batch, 4))(raw_batch(part, 4)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)


def test_prepare_is_stable(part):
    """The same inputs give the same fields with the declared shapes and types, independent of the rest of the batch."""
    said = raw(part, 5)
    prepared = part.prepare(said)
    assert set(prepared) == set(part.reads) == set(part.fields)
    for name, (shape, dtype) in part.fields.items():
        assert prepared[name].shape == (5, *shape)
        assert prepared[name].dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, prepared, part.prepare(said))
    alone = [part.prepare({name: value[i : i + 1] for name, value in said.items()}) for i in range(5)]
    for name in prepared:
        np.testing.assert_array_equal(np.concatenate([one[name] for one in alone]), prepared[name])


def test_null_is_neutral_at_scale_1(part):
    """Dropout with probability 0 changes nothing, and with probability 1 gives the null condition."""
    params, batch = part.init_params(jax.random.key(0)), raw_batch(part, 4)
    asked = tuple(name for name, spec in part.gives.items() if spec.role == "asked")
    for probability in (0.0, 1.0):
        dropout = {asked: probability} if asked else {}
        conditioning = Conditioning(parts=(part,), dropout=dropout)
        own = {next(iter(part.gives)): params} if params is not None else {}
        slots = conditioning(own, batch, 4)
        wanted = conditioning.without(own, slots, 4) if probability else slots
        jax.tree.map(np.testing.assert_array_equal, conditioning.drop(own, slots, keys(4)), wanted)
        assert jax.tree.map(jnp.shape, conditioning.null(own, 4)) == jax.tree.map(jnp.shape, slots)


def test_a_missing_label_is_named():
    with pytest.raises(UserError, match="reads 'label'"):
        Label(num_classes=3)(None, {"data": jnp.zeros(1)}, 1)


def test_labels_have_names():
    label = Label(num_classes=2, class_names=("cat", "dog"))
    assert label.prepare({"label": ["dog", 0, "1"]})["label"].tolist() == [1, 0, 1]
    for wrong, message in (("dgo", "did you mean 'dog'"), (2, "classes 0 to 1"), (-1, "classes 0 to 1")):
        with pytest.raises(UserError, match=message):
            label.prepare({"label": [wrong]})


def test_sets_fall_together_and_told_stays():
    conditioning = Conditioning(parts=TWO, dropout={("label",): 0.1, ("sizes",): 0.2, ("label", "sizes"): 0.3})
    batch = {
        "label": jnp.zeros(SIZE, jnp.int32), "sizes": jnp.ones((SIZE, 2)), "augment": jnp.ones((SIZE, 3)),
    }  # fmt: skip
    slots = conditioning({}, batch, SIZE)
    fallen = conditioning.drop({}, slots, keys())
    label, sizes = np.asarray(fallen["label"] == 5), np.asarray((fallen["sizes"] == 0).all(1))
    for rate, wanted in ((label & ~sizes, 0.1), (~label & sizes, 0.2), (label & sizes, 0.3)):
        assert abs(rate.mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / SIZE)
    np.testing.assert_array_equal(fallen["augment"], 1)
    none = conditioning.without({}, slots, SIZE)
    assert np.all(none["label"] == 5)
    np.testing.assert_array_equal(none["sizes"], 0)
    np.testing.assert_array_equal(none["augment"], 1)


def test_a_probability_may_be_traced():
    conditioning = jax.jit(
        lambda p: Conditioning(parts=TWO[:1], dropout={("label",): p}).drop(
            {}, {"label": jnp.zeros(8, jnp.int32)}, keys(8)
        )["label"]
    )
    assert np.all(conditioning(0.0) == 0)
    assert np.all(conditioning(1.0) == 5)


def test_what_does_not_fit_is_named():
    takes = {"label": ConditionSpec(dtype="int32", num_values=6)}
    Conditioning(parts=TWO[:1]).check(takes)
    with pytest.raises(UserError, match="takes label, but no conditioner fills it"):
        Conditioning().check(takes)
    with pytest.raises(UserError, match="augment is given, but the network takes label"):
        Conditioning(parts=(TWO[0], TWO[2])).check(takes)
    with pytest.raises(UserError, match=r"of 6 values, asked, it is given .* of 4 values"):
        Conditioning(parts=(Label(num_classes=3),)).check(takes)
    with pytest.raises(UserError, match="two conditioners"):
        Conditioning(parts=TWO[:1] * 2)
    with pytest.raises(UserError, match="'augment': it is not a condition of the model"):
        Conditioning(parts=TWO, dropout={("augment",): 0.1})
    for wrong in ({("label",): 1.5}, {("label",): -0.1}, {("label",): float("nan")}):
        with pytest.raises(UserError, match=r"in \[0, 1\]"):
            Conditioning(parts=TWO, dropout=wrong)
    with pytest.raises(UserError, match="add up"):
        Conditioning(parts=TWO, dropout={("label",): 0.6, ("sizes",): 0.6})


def test_a_hole_hides_what_is_in_it():
    hole, draw = Hole(shape=(4, 4, 2)), np.random.default_rng(0)
    picture, mask = draw.uniform(-1, 1, (3, 4, 4, 2)).astype(np.float32), np.zeros((3, 4, 4, 1), np.float32)
    mask[:, 1:3, 1:] = 1
    told = np.asarray(hole(None, {"data": picture, "mask": mask}, 3)["image"])
    np.testing.assert_array_equal(told[..., :1], mask)
    np.testing.assert_array_equal(told[..., 1:], np.where(mask > 0, 0, picture))
    other = np.where(mask > 0, -picture, picture)
    np.testing.assert_array_equal(hole(None, {"data": other, "mask": mask}, 3)["image"], told)
    conditioning = Conditioning(parts=(hole, TWO[0]))
    slots = conditioning({}, {"data": picture, "mask": mask, "label": np.zeros(3, np.int32)}, 3)
    np.testing.assert_array_equal(
        conditioning.without({}, slots, 3)["image"], told
    )  # the slot has the role "told", so guidance keeps it
    null = np.asarray(hole.null(None, 3)["image"])
    assert (null[..., 0] == 1).all()
    assert not null[..., 1:].any()
    with pytest.raises(UserError, match="never dropped"):
        Hole(shape=(4, 4, 2), dropout=0.1)
    with pytest.raises(UserError, match="mask should be"):
        hole.prepare({"data": picture, "mask": mask[:, :2]})


def test_a_source_is_what_the_bytes_are_and_falls_alone():
    source, pictures = Source(shape=(4, 4, 2)), np.random.default_rng(0).integers(0, 256, (6, 4, 4, 2)).astype(np.uint8)
    (told,) = source(None, source.prepare({"source": list(pictures)}), 6).values()
    np.testing.assert_allclose(told, pictures / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(source(None, {"source": told}, 6)["image"], told)
    conditioning = Conditioning(parts=(source, TWO[0]), dropout={("image",): 1.0})
    slots = conditioning({}, {"source": pictures, "label": np.zeros(6, np.int32)}, 6)
    fallen = conditioning.drop({}, slots, keys(6))
    assert not np.asarray(fallen["image"]).any()
    np.testing.assert_array_equal(fallen["label"], 0)
    assert conditioning.beside({}, {"source": pictures}, 6).keys() == {"image"}
    with pytest.raises(UserError, match="a source must be a picture of bytes"):
        source.prepare({"source": [pictures[0, :2]]})
