"""BERT from its published files follows the paper's arithmetic, and other folders are refused in one line."""

import numpy as np
import pytest

from diffusion_jax import weights
from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders import TEXT_ENCODERS, encode
from tests.bert import CONFIG, bert_folder, reference, tensors


def opened(folder, **fields):
    return TEXT_ENCODERS.build({"name": "bert", "folder": str(folder)}, **fields)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_vectors_are_those_of_the_paper(tmp_path, prefix):
    state = tensors()
    encoder = opened(bert_folder(tmp_path, state={prefix + name: value for name, value in state.items()}))
    assert encoder.channels == 8
    params = weights.read_text_encoder(encoder)
    tokens, mask = np.array([[2, 4, 5, 1, 3], [2, 7, 3, 0, 0]]), np.array([[1] * 5, [1, 1, 1, 0, 0]], bool)
    context, pooled = encode(encoder, params, tokens, mask)
    for row, length in enumerate((5, 3)):
        wanted = reference(state, tokens[row, :length], CONFIG["num_attention_heads"], CONFIG["layer_norm_eps"])
        np.testing.assert_allclose(context[row, :length], wanted, atol=2e-5)
        np.testing.assert_allclose(pooled[row], wanted.mean(0), atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', and the text encoder bert has 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be a number above 0, it is 'two'"),
        ({"num_attention_heads": 3}, "8 channels do not divide into 3 heads"),
    ],
)
def test_another_network_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        opened(bert_folder(tmp_path, **changes))


def test_other_weights_are_named(tmp_path):
    encoder = opened(bert_folder(tmp_path, num_hidden_layers=3))
    with pytest.raises(UserError, match=r"16 missing: encoder\.layer\.2"):
        weights.read_text_encoder(encoder)
    with pytest.raises(UserError, match=r"the tokenizer has 99 tokens and the text encoder of .* 11"):
        opened(tmp_path, vocabulary=99)
    with pytest.raises(UserError, match="nowhere"):
        opened("nowhere")


def test_a_text_has_as_many_tokens_as_positions(tmp_path):
    encoder = opened(bert_folder(tmp_path))
    with pytest.raises(UserError, match="the texts have 13 tokens, but the text encoder has 12 positions"):
        encode(encoder, weights.read_text_encoder(encoder), np.zeros((1, 13), int), np.ones((1, 13), bool))
