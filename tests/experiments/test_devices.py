"""Promise 2 at the command line: strategy and number of devices do not change a run, and may change on resuming."""

import json
import shutil

import numpy as np
import pytest

SHORT = (
    "--config.train.steps=32",
    "--config.log.every=4",
    "--config.log.validate_every=16",
    "--config.log.sample_every=0",
    "--config.checkpoint.every=16",
    "--config.sampling.batch_size=100",
    "--config.evaluation.metrics=()",
)
LAYOUTS = {
    "1-jit": (1, ()),
    "8-jit": (8, ()),
    "8-fsdp": (8, ("--config.parallel.data=2", "--config.parallel.fsdp=4")),
    "8-pmap": (8, ("--config.parallel.strategy=pmap",)),
}


@pytest.fixture(scope="module")
def train(command):
    """Run a short training with one of LAYOUTS."""

    def run(workdir, layout, *more):
        devices, parallel = LAYOUTS[layout]
        return command.run(
            "train", *command.train_arguments(workdir, *SHORT, *parallel, *more), JAX_NUM_CPU_DEVICES=str(devices)
        )[0]

    return run


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    """The workdir of an uninterrupted run for each layout, made once."""
    made = {}

    def get(layout):
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp(layout) / "run"
            train(made[layout], layout)
        return made[layout]

    return get


def losses(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == list(range(4, 33, 4))
    return [row["loss"] for row in found] + [row["validation_loss"] for row in found if "validation_loss" in row]


@pytest.mark.parametrize(
    "layout", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("8-jit", "8-pmap")), "8-fsdp"]
)
def test_same_losses_as_on_one_device(uninterrupted, layout):
    devices = json.loads((uninterrupted(layout) / "environment.json").read_text())["devices"]
    assert devices.startswith("8 x")
    np.testing.assert_allclose(losses(uninterrupted(layout)), losses(uninterrupted("1-jit")), rtol=1e-5)


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param("8-pmap", "1-jit", marks=pytest.mark.slow), ("1-jit", "8-pmap")]
)
def test_resumed_under_another_layout(train, uninterrupted, tmp_path, before, after):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted(before), workdir)
    assert f"resuming {workdir} at step 16" in train(workdir, after, "--resume_from=16")
    np.testing.assert_allclose(losses(workdir), losses(uninterrupted(after)), rtol=1e-5)
