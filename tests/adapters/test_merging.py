"""Merging of checkpoints: identities, the papers' rules computed by hand, and errors for mismatched checkpoints."""

import numpy as np
import pytest

from diffusion_jax.adapters import MERGINGS, merge_models
from diffusion_jax.errors import UserError
from experiments import merge


def tree(seed, size=200):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((size, 3)).astype(np.float32)
    return {"network": {"kernel": kernel, "bias": rng.standard_normal(3).astype(np.float32)}}


def merged(spec, models, base=None):
    return merge_models(MERGINGS.build(spec), models, base)


def same(a, b, atol=1e-6):
    for name in a["network"]:
        np.testing.assert_allclose(a["network"][name], b["network"][name], atol=atol)
        assert a["network"][name].dtype == b["network"][name].dtype


A, B, C = tree(0), tree(1), tree(2)


@pytest.mark.parametrize("name", [name for name in MERGINGS if name != "add_difference"])
def test_a_model_merged_with_itself_is_itself(name):
    spec = {"name": name, "density": 1.0} if name == "ties" else {"name": name}
    spec = {"name": name, "drop": 0.0} if name == "dare" else spec
    same(merged(spec, [A, A], C if MERGINGS.build(spec).of_changes else None), A)


def test_ends_and_middles():
    same(merged({"name": "linear", "weights": (1.0, 0.0)}, [A, B]), A)
    same(merged({"name": "slerp", "share": 0.0}, [A, B]), A)
    same(merged({"name": "slerp", "share": 1.0}, [A, B]), B)
    same(merged({"name": "add_difference"}, [A, B, B]), A)
    same(merged({"name": "add_difference", "scale": 1.0}, [A, B, A]), B)
    same(merged({"name": "ties", "density": 1.0}, [B, B], A), B)


def test_slerp_keeps_lengths():
    unit = {"network": {"kernel": np.float32([1.0, 0.0])}}
    other = {"network": {"kernel": np.float32([0.0, 1.0])}}
    found = merged({"name": "slerp", "share": 1 / 3}, [unit, other])["network"]["kernel"]
    np.testing.assert_allclose(found, [np.cos(np.pi / 6), np.sin(np.pi / 6)], atol=1e-6)


def test_ties_by_hand():
    base = {"network": {"kernel": np.zeros(4, np.float32)}}
    one = {"network": {"kernel": np.float32([3.0, -1.0, 0.2, 2.0])}}
    two = {"network": {"kernel": np.float32([1.0, 2.0, 0.1, -3.0])}}
    found = merged({"name": "ties", "density": 0.75}, [one, two], base)["network"]["kernel"]
    # Each trimmed to three entries: [3, -1, 0, 2] and [1, 2, 0, -3]. Signs of the sums: +, +, 0, -.
    np.testing.assert_allclose(found, [2.0, 2.0, 0.0, -3.0])


def test_dare_keeps_the_mean_change_and_drops_the_share():
    base = {"network": {"kernel": np.zeros((400, 50), np.float32)}}
    one = {"network": {"kernel": np.ones((400, 50), np.float32)}}
    found = merged({"name": "dare", "drop": 0.75, "weights": (1.0, 0.0)}, [one, base], base)["network"]["kernel"]
    assert set(np.unique(found)) == {0.0, 4.0}
    assert abs((found == 0).mean() - 0.75) < 0.01
    again = merged({"name": "dare", "drop": 0.75, "weights": (1.0, 0.0)}, [one, base], base)["network"]["kernel"]
    np.testing.assert_array_equal(found, again)
    other = merged({"name": "dare", "drop": 0.75, "weights": (1.0, 0.0), "seed": 1}, [one, base], base)
    assert (found != other["network"]["kernel"]).any()


def test_blocks_have_weights_of_their_own():
    found = merged({"name": "linear", "weights": (0.5, 0.5), "blocks": (("bias", (0.0, 1.0)),)}, [A, B])["network"]
    np.testing.assert_array_equal(found["bias"], B["network"]["bias"])
    np.testing.assert_allclose(found["kernel"], (A["network"]["kernel"] + B["network"]["kernel"]) / 2, atol=1e-6)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="slerp merges 2 models, got 3"):
        merged({"name": "slerp"}, [A, B, C])
    with pytest.raises(UserError, match="3 weights for 2 models"):
        merged({"name": "linear", "weights": (1.0, 1.0, 1.0)}, [A, B])
    with pytest.raises(UserError, match="merges changes from a base"):
        merged({"name": "ties"}, [A, B])
    with pytest.raises(UserError, match=r"model 2 differs in form .*kernel: \(200, 3\) and \(100, 3\)"):
        merged({"name": "linear"}, [A, tree(3, size=100)])
    with pytest.raises(UserError, match="density"):
        MERGINGS.build({"name": "ties", "density": 0.0})
    with pytest.raises(UserError, match="is not finite"):
        merged({"name": "linear"}, [A, {"network": {**B["network"], "bias": np.full(3, np.nan, np.float32)}}])


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    merge.FLAGS.read(["merge", "--models=a,b", f"--out={tmp_path}"])
    try:
        with pytest.raises(UserError, match="is there already, with something in it: give a new folder"):
            merge.main([])
    finally:
        merge.FLAGS.assume_defaults()
