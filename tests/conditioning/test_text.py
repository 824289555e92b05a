"""Text conditioning: padding changes nothing, the empty text is the null condition, and altered texts are reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import CONDITIONERS, Conditioning
from diffusion_jax.data.prompts import Bytes
from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders import TEXT_ENCODERS, encode, init_encoder
from diffusion_jax.rng import BatchKey
from diffusion_jax.specs import ConditionSpec
from diffusion_jax.systems.description import describe, rebuild
from tests.bert import bert_folder

TEXTS = ["a red star", "", "red", "star star star star star star"]


@pytest.fixture(scope="module")
def text():
    return CONDITIONERS.example("text")


@pytest.fixture(scope="module")
def params(text):
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(text.init_params, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.float32(draw.standard_normal(leaf.shape)), shapes)


@pytest.fixture(scope="module", params=list(TEXT_ENCODERS))
def encoder(request, tmp_path_factory):
    if request.param == "bert":
        return TEXT_ENCODERS.build({"name": "bert", "folder": str(bert_folder(tmp_path_factory.mktemp("bert")))})
    return TEXT_ENCODERS.example(request.param)


def test_padding_changes_nothing(encoder):
    """Neither the length nor the content of padding changes a text's vectors; the vectors of padding are zero."""
    params = init_encoder(encoder, jax.random.key(0))
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, encoder.vocabulary, (3, 5))
    whole = encode(encoder, params, tokens, np.ones((3, 5), bool))
    for filling in (0, encoder.vocabulary - 1):
        longer = np.concatenate([tokens, np.full((3, 4), filling)], axis=1)
        mask = np.arange(9)[None].repeat(3, 0) < 5
        context, pooled = encode(encoder, params, longer, mask)
        np.testing.assert_allclose(context[:, :5], whole[0], atol=1e-6)
        np.testing.assert_array_equal(context[:, 5:], 0)
        np.testing.assert_allclose(pooled, whole[1], atol=1e-6)
        assert np.abs(encode(encoder, params, longer, np.ones((3, 9), bool))[1] - pooled).max() > 1e-3


def test_an_encoder_sees_tokens_their_order_and_each_other(encoder):
    params = init_encoder(encoder, jax.random.key(0))
    mask = np.ones((1, 3), bool)
    context, pooled = (np.asarray(x) for x in encode(encoder, params, np.array([[1, 2, 3]]), mask))
    assert context.shape == (1, 3, encoder.channels)
    assert pooled.shape == (1, encoder.channels)
    assert context.dtype == pooled.dtype == np.float32
    other, _ = encode(encoder, params, np.array([[1, 2, 4]]), mask)
    assert np.abs(other[0, 0] - context[0, 0]).max() > 1e-4, "the first token hears of the last"
    turned, _ = encode(encoder, params, np.array([[3, 2, 1]]), mask)
    assert np.abs(turned[0, ::-1] - context[0]).max() > 1e-3, "places count"


@pytest.mark.parametrize("compiled", [False, True])
def test_the_empty_prompt_is_the_null_condition_to_the_bit(text, params, compiled):
    """The empty prompt equals the null condition bit for bit, in any batch, compiled or not."""
    run = jax.jit if compiled else lambda function: function
    batch = text.prepare({"text": TEXTS})
    slots = run(lambda params, batch: text(params, batch, 4))(params, batch)
    null = run(lambda params: text.null(params, 4))(params)
    alone = run(lambda params, batch: text(params, batch, 1))(params, text.prepare({"text": [""]}))
    for name in slots:
        np.testing.assert_array_equal(slots[name][1], null[name][1])
        np.testing.assert_array_equal(alone[name][0], null[name][0])
    assert np.abs(slots["pooled"][0] - null["pooled"][0]).max() > 1e-2


def test_a_text_falls_with_its_mask(text, params):
    conditioning = Conditioning(parts=(text,), dropout={("context", "pooled"): 0.5})
    own, size = {"context": params}, 64
    slots = conditioning(own, text.prepare({"text": ["a red star"] * size}), size)
    fallen = conditioning.drop(own, slots, BatchKey.create(jax.random.key(1), size))
    null = conditioning.null(own, size)
    gone = np.asarray(fallen["context_mask"]).sum(axis=1) == 1
    assert 16 < gone.sum() < 48
    for name in slots:
        np.testing.assert_array_equal(fallen[name][gone], null[name][gone])
        np.testing.assert_array_equal(fallen[name][~gone], slots[name][~gone])
    only = conditioning.without(own, slots, size, ("context",))
    np.testing.assert_array_equal(only["context_mask"], null["context_mask"])
    np.testing.assert_array_equal(only["pooled"], slots["pooled"])


def test_the_null_text_is_trained(text, params):
    def loss(params):
        return jnp.sum(text.null(params, 2)["pooled"] ** 2)

    assert float(jnp.abs(jax.grad(loss)(params)["embedding"][1]).max()) > 0, "the token that begins every text"


def test_what_is_not_read_as_it_stands_is_said(text):
    said = text.remarks(["a red star", "a blue dog", "star " * 9, "blue"], "prompts")
    assert said == [
        "1 of 4 prompts are longer than the 5 tokens that conditioning.text.length=6 has place for, and are cut; the "
        "longest has 9",
        "words in prompts that are not in the word list, and all mean the same here: blue, dog",
    ]
    assert text.remarks(["a red star", ""], "prompts") == []
    many = text.remarks([" ".join(f"word{i}" for i in range(30))], "prompts")[1]
    assert many.endswith("word13, word14, word15 and 22 more")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "length must be a whole number of at least 1"),
        ({"tokenizer": "wrods"}, "unknown tokenizer 'wrods'; did you mean 'words'"),
        ({"encoder": "transfromer"}, "unknown text encoder 'transfromer'; did you mean 'transformer'"),
        ({"encoder": {"name": "transformer", "width": 10, "num_heads": 4}}, "must be divisible by num_heads=4"),
        ({"encoder": {"name": "transformer", "depth": 0}}, "depth must be a whole number of at least 1"),
        ({"tokenizer": {"name": "words", "most": 0}}, "most must be a whole number of at least 1"),
        ({"lenght": 3}, "did you mean 'length'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        CONDITIONERS.build({"name": "text", **fields})


def test_a_batch_without_texts_is_named(text, params):
    with pytest.raises(UserError, match="Text reads 'text_tokens', the batch has label"):
        text(params, {"label": jnp.zeros(2)}, 2)


def test_the_tokenizer_says_how_many_rows_the_table_has(text):
    of_bytes = dataclasses.replace(text, tokenizer=Bytes())
    assert of_bytes.prepare({"text": ["é"]})["text_tokens"].tolist() == [[256, 0xC3, 0xA9, 257, 257, 257]]
    built = CONDITIONERS.build({"name": "text", "tokenizer": "bytes"})
    assert jax.eval_shape(built.init_params, jax.random.key(0))["embedding"].shape == (258, 128)


def test_a_canvas_stands_beside_the_text_and_falls_with_it():
    """Letters in quotation marks are drawn on a canvas; a prompt without text has the null canvas, bit for bit."""
    spec = {"name": "text", "tokenizer": "bytes", "encoder": {"name": "transformer", "width": 8, "depth": 1}}
    spec["encoder"]["num_heads"] = 2
    told = CONDITIONERS.build({**spec, "length": 16, "canvas": 24})
    assert told.gives["canvas"] == ConditionSpec(shape=(24, 24, 1))
    batch = told.prepare({"text": ['the word "ab"', "", '"ab" again']})
    assert batch["text_canvas"].shape == (3, 24, 24, 1)
    assert {name: (values.shape[1:], str(values.dtype)) for name, values in batch.items()} == dict(told.fields)
    params = init_encoder(told.encoder, jax.random.key(0))
    slots, null = told(params, batch, 3), told.null(params, 3)
    assert set(slots) == set(null)
    for name, value in slots.items():
        np.testing.assert_array_equal(value[1], null[name][1])
    np.testing.assert_array_equal(slots["canvas"][0], slots["canvas"][2])
    assert slots["canvas"].dtype == jnp.float32
    assert 0.9 < float(slots["canvas"][0].max()) <= 1
    fallen = Conditioning(parts=(told,)).without({"context": params}, slots, 3)
    np.testing.assert_array_equal(fallen["canvas"], 0)
    elsewhere = CONDITIONERS.build({**spec, "length": 16, "canvas": 24}, data_dir="/somewhere/else")
    assert elsewhere == told  # the location of fonts is not part of a model's description
    assert "data_dir" not in describe(elsewhere)
    assert rebuild(describe(elsewhere)) == told
