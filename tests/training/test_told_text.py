"""A train step of a text-conditioned network: equal on any layout, exportable, and with a trained encoder."""

import jax
import numpy as np
import pytest

from diffusion_jax import models, parallel, training
from diffusion_jax.conditioning import CONDITIONERS, Conditioning

WORDS = ("a", "red", "star", "blue")


@pytest.fixture
def told(make_trainable, batch):
    """A Trainable of a text-conditioned transformer, and its batches."""

    def make(context_by="cross"):
        text = CONDITIONERS.build(
            {
                "name": "text",
                "tokenizer": {"name": "words", "words": WORDS, "most": 5},
                "encoder": {"name": "transformer", "width": 8, "depth": 1, "num_heads": 2},
                "length": 6,
            }
        )
        conditioning = Conditioning(parts=(text,), dropout={("context", "pooled"): 0.3})
        fields = {"context_channels": 8, "pooled_channels": 8, "context_by": context_by, "depth": 1}
        trainable = make_trainable("dit", conditioning=conditioning, **fields)

        def batches(step=0):
            draw = np.random.default_rng(step)
            texts = [" ".join(draw.choice(WORDS, n)) for n in draw.integers(0, 5, 16)]
            return {"data": batch(step)["data"], **text.prepare({"text": texts})}

        return trainable, batches

    return make


def opened(state):
    """The state with non-zero gates and last layers, which are zero at the start."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: np.float32(p + 0.1 * draw.standard_normal(p.shape)), jax.device_get(state.params))
    return state.replace(params=params)


@pytest.mark.parametrize(
    ("context_by", "spec"),
    [
        pytest.param("cross", {"name": "jit", "data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        ("joint", {"name": "jit", "data": 2, "fsdp": 2, "tensor": 2}),
        ("cross", {"name": "pmap"}),
    ],
)
def test_a_step_on_eight_devices_is_that_of_one(told, make_step, context_by, spec):
    trainable, batches = told(context_by)
    step, init = make_step(trainable)
    expected, metrics = jax.jit(step)(opened(init()), batches())
    layout = parallel.LAYOUTS.build(spec)
    compiled = layout.compile(step, jax.eval_shape(init))
    state = layout.from_canonical(jax.device_put(opened(init()), layout.canonical_shardings(jax.eval_shape(init))))
    state, there = compiled(state, layout.place_batch(batches()))
    np.testing.assert_allclose(layout.fetch(there)["loss"], metrics["loss"], rtol=2e-5)
    found = jax.device_get(layout.to_canonical(state)).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected.params)
    before = opened(init()).params["conditioning/context"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected.params["conditioning/context"], before)
    assert min(jax.tree.leaves(moved)) > 0, "every parameter of the encoder is trained along"


def test_the_step_exports(told, make_step):
    trainable, batches = told()
    step, init = make_step(trainable)
    exported = jax.export.export(jax.jit(step))(jax.eval_shape(init), batches())
    state, metrics = jax.jit(step)(init(), batches())
    again, metrics_again = exported.call(init(), batches())
    np.testing.assert_allclose(metrics["loss"], metrics_again["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, again.params)


def test_an_encoder_may_be_frozen(told):
    """A frozen encoder is separate from trained groups, in no average, and gets no update."""
    trainable, batches = told()
    optimizer = training.make_optimizer({"name": "sgd"}, learning_rate=lambda _: 1e-1, clip_norm=1.0)
    ema = training.EmaConfig(decays=(0.9,))
    state = training.create_state(
        lambda: trainable.init_params(jax.random.key(0), models.init_params), optimizer, ema, trained=("network",)
    )
    assert set(state.params) == set(state.ema["decay_0.9"]) == {"network"}
    assert set(state.frozen) == {"conditioning/context"}
    step = training.make_train_step(trainable, optimizer, ema=ema, learning_rate=lambda _: 1e-1, batch_size=16, seed=0)
    after, metrics = jax.jit(step)(state, batches())
    assert np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    assert set(after.evaluation_params()) == {"network", "conditioning/context"}
