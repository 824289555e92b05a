"""Averages of the parameters that are reconstructed after training."""

import jax
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from experiments.building.restoring import restore_params


@pytest.fixture(scope="module")
def workdir(command, tmp_path_factory):
    """The workdir of a finished tiny run with two power-function averages."""
    directory = tmp_path_factory.mktemp("widths") / "run"
    command.run("train", *command.train_arguments(directory, "--config.ema.widths=(0.05,0.1)"))
    return directory


def test_a_power_average_of_any_width_is_put_together_from_checkpoints(workdir):
    """A stored width is reconstructed up to rounding, and width 0.07 is closer to it than width 0.1."""
    _, kept, source = restore_params(workdir, ema="width_0.05")
    _, found, built = restore_params(workdir, ema="width_0.050")
    assert source["step"] == built["step"] == 60
    assert len(built["from_steps"]) > 1
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def distance(width, params):
        other = restore_params(workdir, ema=f"width_{width}")[1]
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
        return sum(float(((a - b) ** 2).sum()) for a, b in pairs)

    assert 0 < distance(0.07, kept) < distance(0.1, kept)


def test_what_names_no_average(workdir):
    with pytest.raises(UserError, match="followed by a number"):
        restore_params(workdir, ema="width_narrow")
    with pytest.raises(UserError, match="width of a power-function"):
        restore_params(workdir, ema="width_0.4")
    with pytest.raises(UserError, match="no checkpoint to build"):
        restore_params(workdir, ema="width_0.07", step=7)


def test_a_run_is_loaded_by_one_call(workdir):
    """One call loads the model of a run and the parameters that its commands sample with."""
    experiment, expected, _ = restore_params(workdir)
    model, params = dj.load_model(workdir)
    assert model == experiment.model
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    _, raw = dj.load_model(workdir, average="params")
    jax.tree.map(np.testing.assert_array_equal, raw, restore_params(workdir, ema="params")[1])
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    _, earlier = dj.load_model(workdir, step=steps[0], average="width_0.1")
    jax.tree.map(np.testing.assert_array_equal, earlier, restore_params(workdir, step=steps[0], ema="width_0.1")[1])
    with pytest.raises(UserError, match="no checkpoint 7"):
        dj.load_model(workdir, step=7)
    with pytest.raises(UserError, match="keeps no average"):
        dj.load_model(workdir, average="width_0.3")
