"""DINOv2 and CLIP with random weights equal the authors' and Hugging Face's code (tests/golden/metrics)."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.models.encoders import ClipText, VisionTransformer, bicubic_matrix
from diffusion_jax.weights import read_clip, read_dinov2
from diffusion_jax.weights.published.clip import token_shapes, vision_shapes
from tests.encoder_weights import random_tensor, write_tokenizer, written


def images(size, count=2):
    return random_tensor(f"images/{size}", (count, size, size, 3))


@pytest.fixture
def dinov2(tmp_path):
    golden = written("dinov2", tmp_path / "dinov2.safetensors")
    return golden, tmp_path / "dinov2.safetensors"


@pytest.fixture
def clip(tmp_path):
    golden = written("clip", tmp_path / "model.safetensors")
    return golden, tmp_path


@pytest.mark.parametrize("size", [70, 42])
def test_dinov2_is_the_authors(dinov2, size):
    """The features equal the authors' at the size of the position table, and at one where the table is resampled."""
    golden, path = dinov2
    network, params, fingerprint = read_dinov2(path)
    assert (network.patch_size, network.grid, network.width, network.depth) == (14, 5, 128, 2)
    with jax.default_matmul_precision("highest"):
        found = network.apply({"params": params}, images(size)).vector
    np.testing.assert_allclose(found, golden[f"features_{size}"], atol=2e-5)
    assert len(fingerprint) == 64


def test_clip_is_hugging_faces(clip):
    golden, folder = clip
    model = read_clip(folder)
    assert model.image.image_size == 24
    with jax.default_matmul_precision("highest"):
        image = model.image.apply({"params": model.image_params}, images(24, 3)).vector
        text = model.text.apply({"params": model.text_params}, golden["tokens"]).projected
    np.testing.assert_allclose(image, golden["image_features"], atol=2e-5)
    np.testing.assert_allclose(text, golden["text_features"], atol=2e-5)


def test_published_sizes():
    """Parameter counts of DINOv2's ViT-L/14 (300 M on torch hub's page) and of CLIP's two encoders."""

    def count(shapes):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    large = VisionTransformer(patch_size=14, grid=37, width=1024, depth=24, layer_scale=True)
    assert count(vision_shapes(large)) == 304_368_640 - 1_024  # without the mask token
    image = VisionTransformer(
        patch_size=14, grid=24, width=1024, depth=24, projection=768, first_norm=True, patch_bias=False
    )
    text = ClipText(vocabulary=49_408, length=77, width=768, depth=12, num_heads=12, hidden_units=3072, projection=768)
    assert count(vision_shapes(image)) + count(token_shapes(text)) == 427_944_192  # without logit_scale


def test_bicubic_matrix_keeps_constants_and_lines():
    matrix = bicubic_matrix(37, 16, 16.1 / 37)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    line = matrix @ np.arange(37.0)
    np.testing.assert_allclose(np.diff(line)[2:-2], 37 / 16.1, atol=0.15)
    np.testing.assert_array_equal(bicubic_matrix(5, 5, 1.0), np.eye(5))


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(UserError, match=r"dinov2_vitl14_pretrain.pth \(SHA-256 d5383ea8"):
        read_dinov2(tmp_path / "dinov2.pth")
    with pytest.raises(UserError, match=r"clip-vit-large-patch14-336.*SHA-256 c6032c2e"):
        read_clip(tmp_path / "clip")


def test_other_weights_are_refused(clip, dinov2, tmp_path):
    with pytest.raises(UserError, match=r"no tensor patch_embed\.proj\.weight"):
        read_dinov2(clip[1] / "model.safetensors")
    state = {
        "patch_embed.proj.weight": np.zeros((128, 3, 14, 14), np.float32),
        "pos_embed": np.zeros((1, 26, 128), "f"),
    }
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"no tensors blocks\."):
        read_dinov2(tmp_path / "part.safetensors")
    save_file({**state, "blocks.0.norm1.weight": np.ones(128, np.float32)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"missing: .*blocks\.0\.norm1\.bias"):
        read_dinov2(tmp_path / "part.safetensors")
    (clip[1] / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "relu"}}))
    with pytest.raises(UserError, match="relu"):
        read_clip(clip[1])


def test_texts_of_clip(clip):
    """Texts get a start and an end token, are padded with the end token, and are cut if they are too long."""
    golden, folder = clip
    write_tokenizer(folder)
    model = read_clip(folder)
    texts = ["a photo of a cat", "a dog", " ".join(["dog"] * 40)]
    found = model.of_texts(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    words = {"a": 1, "photo": 2, "of": 3, "cat": 4, "dog": 5}
    tokens = np.full(golden["tokens"].shape, 98)
    for row, text in zip(tokens, texts, strict=True):
        ids = [97, *(words[word] for word in text.split())][:11]
        row[: len(ids)] = ids
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(model.text.apply({"params": model.text_params}, tokens).projected)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_texts_without_their_tokenizer(clip):
    model = read_clip(clip[1])
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        model.of_texts(["a dog"])
    write_tokenizer(clip[1], end=50)
    with pytest.raises(UserError, match=r"not the tokenizer of these weights"):
        model.of_texts(["a dog"])
