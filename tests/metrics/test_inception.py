"""Inception-v3, its weights and its resizers, compared with torch-fidelity, NVIDIA's network and Pillow."""

import pathlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import inception_features
from diffusion_jax.metrics.resizing import RESIZERS, resizer
from diffusion_jax.weights import inception_shapes, nvidia_inception_map, read_inception
from tests.inception_weights import write_random_inception, write_random_nvidia_inception

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "metrics"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights with the names of pytorch-fid."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    write_random_inception(path)
    return path


def test_the_number_of_parameters():
    leaves = flatten_dict(inception_shapes())
    trunk = sum(v.size for path, v in leaves.items() if path[-1] in ("kernel", "scale", "bias"))
    assert trunk == 21_785_568
    assert len(leaves) == 5 * 94 + 1  # convolutions, and the classifier


def test_features_are_those_of_torch_fidelity(weights):
    golden = np.load(GOLDEN / "inception.npz")
    params, fingerprint = read_inception(weights)
    space = inception_features(params, fingerprint=fingerprint, batch_size=3)
    found = space(golden["x"])
    for name in ("pooled", "spatial"):
        expected = golden[name]
        assert np.abs(getattr(found, name) - expected).max() < 1e-5 * np.abs(expected).max()
    logits = golden["logits"].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.log_probabilities, logs, atol=1e-4)
    assert space.settings == {
        "features": "inception_v3_2015",
        "weights_sha256": fingerprint,
        "resizer": "tf1_bilinear",
    }
    assert len(fingerprint) == 64


def test_features_are_those_of_nvidias_network(tmp_path):
    golden = np.load(GOLDEN / "inception_nvidia.npz")
    write_random_nvidia_inception(tmp_path / "weights.safetensors")
    params, fingerprint = read_inception(tmp_path / "weights.safetensors")
    found = inception_features(params, fingerprint=fingerprint, batch_size=3)(golden["x"])
    for name in ("pooled", "spatial"):
        assert np.abs(getattr(found, name) - golden[name]).max() < 1e-5 * np.abs(golden[name]).max()
    np.testing.assert_allclose(np.exp(found.log_probabilities), golden["probabilities"], rtol=1e-3, atol=1e-6)
    params["Conv2d_1a_3x3"]["scale"] = 2 * params["Conv2d_1a_3x3"]["scale"]
    with pytest.raises(UserError, match="no such scale"):
        nvidia_inception_map().state(params)


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(UserError, match=r"pytorch-fid/releases.*SHA-256 6726825d.*nvidia.*\.pkl \(SHA-256 a31bd1d4"):
        read_inception(tmp_path / "inception.pth")


def test_other_weights_are_refused(tmp_path):
    save_file({"conv.weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="missing"):
        read_inception(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", list(RESIZERS))
@pytest.mark.parametrize("way", ["up", "down"])
def test_resizers(name, way):
    golden = np.load(GOLDEN / "resizers.npz")
    found = RESIZERS[name](golden[f"{way}/x"], 11)
    np.testing.assert_allclose(found, golden[f"{way}/{name}"], atol=0 if name == "tf1_bilinear" else 5e-4)


def test_resizers_differ():
    image = np.load(GOLDEN / "resizers.npz")["down/x"]
    results = [np.asarray(resize(image, 11)) for resize in RESIZERS.values()]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert np.abs(a - b).mean() > 1


def test_an_unknown_resizer_or_convention_lists_the_known_ones():
    with pytest.raises(UserError, match="did you mean 'tf1_bilinear'"):
        resizer("tf1_bilinaer")
    with pytest.raises(UserError, match="pytorch_fid"):
        inception_features({}, fingerprint="", convention="torch")
