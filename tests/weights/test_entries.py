"""Averages are found wherever training programs store them, and the choice is reported."""

import collections

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.weights import read_state, read_weights
from tests.torch_writer import save_legacy, save_zip, tensors

RAW = {"in.weight": np.float32([[1, 2], [3, 4]]), "in.bias": np.float32([5, 6]), "out.weight": np.float32([[7, 8]])}
AVERAGE = {name: value / 2 for name, value in RAW.items()}
BUFFER = {"in.running_mean": np.float32([9, 9])}
OPTIMIZER = {
    "state": {
        i: {"exp_avg": value, "exp_avg_sq": value, "step": np.float32(3)} for i, value in enumerate(RAW.values())
    },
    "param_groups": [{"lr": 1e-4, "params": [0, 1, 2]}],
}


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def dotless(state):
    return {name.replace(".", ""): value for name, value in state.items()}


def inside(keys, value):
    for key in reversed(keys):
        value = {key: value}
    return value


LAYOUTS = {
    "dit": {"model": RAW, "ema": AVERAGE, "opt": OPTIMIZER, "args": {"lr": 1}},
    "average_first": {"ema": AVERAGE, "model": RAW},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": AVERAGE},
    "deepspeed": {"module": under("module.", RAW), "ema": AVERAGE, "optimizer": OPTIMIZER, "ds_config": {}},
    "model_ema": {"model": RAW, "model_ema": AVERAGE, "epoch": 3},
    "ema_model": {"model": RAW, "ema_model": under("module.", AVERAGE)},
    "averaged_model": {"model": RAW, "swa_model": {**under("module.", AVERAGE), "n_averaged": np.int64(3)}},
    "ema_params": {"params": RAW, "ema_params": AVERAGE},
    "params_ema": {"params": RAW, "params_ema": AVERAGE},
    "ema_weights": {"weights": RAW, "ema_weights": AVERAGE},
    "shadow": {"model": RAW, "ema": {"decay": 0.99, "num_updates": 4, "shadow": AVERAGE}},
    "score_sde": {"model": RAW, "optimizer": OPTIMIZER, "ema": {"decay": 0.9, "shadow_params": list(AVERAGE.values())}},
    "stored": {
        "model": RAW,
        "ema": {"shadow_params": list(AVERAGE.values()), "collected_params": list(RAW.values()), "num_updates": 1},
    },
    "list_with_buffer": {"state_dict": {**BUFFER, **RAW}, "ema": {"shadow_params": list(AVERAGE.values())}},
    "tuple": {"model": RAW, "model_ema": tuple(AVERAGE.values())},
    "numbered": {"model": RAW, "ema": dict(enumerate(AVERAGE.values()))},
    "nested": {"state": {"model": RAW, "ema": AVERAGE}},
    "deep": inside(["trainer", "loops", "state"], {"net": RAW, "netEMA": AVERAGE}),
    "lucidrains": {
        "model": RAW,
        "ema": {
            **under("online_model.", RAW),
            **under("ema_model.", AVERAGE),
            "initted": np.bool_([True]),
            "step": np.int64([7]),
        },
    },
    "lightning": {"state_dict": {**under("net.", RAW), **under("net_ema.", AVERAGE)}},
    "latent_diffusion": {
        "state_dict": {
            **under("model.net.", RAW),
            **under(
                "model_ema.", {**dotless(under("net.", AVERAGE)), "decay": np.float32(1), "num_updates": np.int64(1)}
            ),
            **under("first_stage_model.", RAW),
        }
    },
    "callback": {"state_dict": RAW, "callbacks": {"EMACallback": {"ema_state_dict": AVERAGE}}},
    "optimizers_average": {"state_dict": RAW, "optimizer_states": [{**OPTIMIZER, "ema": list(AVERAGE.values())}]},
    "ddim": [RAW, OPTIMIZER, 3, 1000, AVERAGE],
    "gan": {"G": RAW, "D": under("d.", RAW), "G_ema": AVERAGE},
    "only_trained": {"model": {**RAW, **BUFFER}, "ema": AVERAGE},
    "prefixed": {"state_dict": {**under("net.", RAW), **under("loss.", BUFFER)}, "ema": AVERAGE},
    "ordered": collections.OrderedDict(model=RAW, model_ema=AVERAGE),
    "best": {"best_metric": np.float32(3.0), "ema": AVERAGE, "model": RAW},
    "flat": {**under("model.", RAW), **under("ema.", AVERAGE)},
    "flat_rest": {**RAW, **under("ema_model.module.", AVERAGE)},
    "flat_module": {**under("module.model.", RAW), **under("module.model_ema.", AVERAGE)},
}


def of_the_network(state):
    """The tensors of the network in a layout, without the prefixes of their names."""
    return {name: next(v for n, v in state.items() if n.endswith(name) and "first_stage" not in n) for name in RAW}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_average_is_taken(tmp_path, save, layout):
    save(tmp_path / "a.pt", tensors(LAYOUTS[layout]))
    found = read_weights(tmp_path / "a.pt")
    assert found.is_average
    for name, value in of_the_network(found.tensors).items():
        np.testing.assert_array_equal(value, AVERAGE[name])
    (line,) = found.told()
    assert line.startswith("taking the average")
    assert found.entry in line
    for other in found.others:  # other entries, such as raw weights, are available by name
        again = read_weights(tmp_path / "a.pt", entry=other)
        assert "raw weights and not their average" in again.told()[0]


@pytest.mark.parametrize("separator", [".", "/"])
def test_flat_files_of_other_kinds(tmp_path, separator):
    state = {name.replace(".", separator): value for name, value in LAYOUTS["flat"].items()}
    save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **state)
    for name in ("a.safetensors", "a.npz"):
        found = read_state(tmp_path / name)
        assert set(found) == {n.replace(".", separator) for n in RAW}
        np.testing.assert_array_equal(found[f"in{separator}bias"], AVERAGE["in.bias"])
        raw = read_state(tmp_path / name, entry="model")
        np.testing.assert_array_equal(raw[f"in{separator}bias"], RAW["in.bias"])


def test_what_an_average_lacks_comes_from_the_raw_weights(tmp_path):
    save_zip(tmp_path / "a.pt", tensors(LAYOUTS["only_trained"]))
    found = read_weights(tmp_path / "a.pt")
    np.testing.assert_array_equal(found.tensors["in.running_mean"], BUFFER["in.running_mean"])
    assert found.borrowed == 1
    assert "1 tensors that it lacks" in found.told()[0]


def test_several_averages_are_for_the_user_to_choose(tmp_path):
    emas = {"stds": [0.05, 0.1], "emas": [AVERAGE, RAW]}  # EDM2
    save_zip(tmp_path / "a.pt", tensors({"net": RAW, "ema": emas}))
    with pytest.raises(UserError, match=r"several averages.*ema\.emas\.0, ema\.emas\.1; choose one with --entry"):
        read_state(tmp_path / "a.pt")
    np.testing.assert_array_equal(read_state(tmp_path / "a.pt", entry="ema.emas.0")["in.bias"], AVERAGE["in.bias"])
    with pytest.raises(UserError, match=r"no entry 'nothing'; there are: net, ema\.emas\.0, ema\.emas\.1"):
        read_state(tmp_path / "a.pt", entry="nothing")


def test_several_networks_are_for_the_user_to_choose(tmp_path):
    save_zip(tmp_path / "a.pt", tensors({"generator_a": RAW, "generator_b": AVERAGE}))
    with pytest.raises(UserError, match=r"several sets of weights: generator_a, generator_b; choose one with --entry"):
        read_state(tmp_path / "a.pt")
    save_zip(tmp_path / "b.pt", tensors({"state_dict": {**under("student.", RAW), **under("teacher.", AVERAGE)}}))
    np.testing.assert_array_equal(read_state(tmp_path / "b.pt", entry="teacher")["in.bias"], AVERAGE["in.bias"])


def test_a_list_that_fits_in_two_ways_is_refused(tmp_path):
    model = {name: np.float32([1, 2]) for name in ("a.w", "b.w", "c.w")}
    save_zip(tmp_path / "a.pt", tensors({"model": model, "ema": [np.float32([1, 2])] * 2}))
    with pytest.raises(UserError, match=r"2 tensors without names.*more than one way"):
        read_state(tmp_path / "a.pt")
    save_zip(tmp_path / "b.pt", tensors({"ema": {"shadow_params": list(RAW.values())}}))
    with pytest.raises(UserError, match="no raw weights to take the names from"):
        read_state(tmp_path / "b.pt")


def test_layers_called_so_are_no_average(tmp_path):
    codebook = {"quantize.embed": np.ones((4, 2), np.float32), "quantize.ema.size": np.ones(4, np.float32)}
    save_zip(tmp_path / "a.pt", tensors({"state_dict": {**RAW, **codebook}}))
    found = read_weights(tmp_path / "a.pt")
    assert set(found.tensors) == {*RAW, *codebook}
    assert not found.is_average


def test_an_average_in_a_file_beside_is_told(tmp_path):
    """Guided diffusion stores model000010.pt, ema_0.9999_000010.pt and opt000010.pt."""
    for name, state in (("model000010", RAW), ("ema_0.9999_000010", AVERAGE), ("opt000010", OPTIMIZER)):
        save_zip(tmp_path / f"{name}.pt", tensors(state))
    (line,) = read_weights(tmp_path / "model000010.pt").told()
    assert "raw weights" in line
    assert "ema_0.9999_000010.pt" in line
    assert read_weights(tmp_path / "ema_0.9999_000010.pt").told() == []
    found = read_weights(tmp_path)
    np.testing.assert_array_equal(found.tensors["in.bias"], AVERAGE["in.bias"])
    assert "taking the average ema_0.9999_000010.pt" in found.told()[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.module."])
def test_wrappers_are_taken_off(tmp_path, prefix):
    state = {**under(prefix, RAW), f"{prefix}mid._checkpoint_wrapped_module.bias": RAW["in.bias"]}
    save_file(state, tmp_path / "a.safetensors")
    assert set(read_state(tmp_path / "a.safetensors")) == {*RAW, "mid.bias"}
