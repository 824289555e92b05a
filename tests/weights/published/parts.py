"""Read reference parts (tests/golden/modules, tests/golden/pipelines) and compare this package with them."""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.weights import COMPONENTS, class_name, read_component, read_state

GOLDEN = Path(__file__).parents[2] / "golden"
MODULES = GOLDEN / "modules"
TOLERANCES = json.loads((MODULES / "tolerances.json").read_text())
COUNTS = json.loads((MODULES / "counts.json").read_text())


@functools.cache
def read(folder: Path):
    """The module, the parameters and the reference's arrays of a folder."""
    arrays = dict(np.load(folder / "io.npz")) if (folder / "io.npz").is_file() else {}
    return *read_component(folder), arrays


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def component_of(config: dict):
    return COMPONENTS.build(class_name(config))


def require_close(name: str, found: dict, arrays: dict) -> None:
    """Require every result of the reference within its tolerance."""
    wanted = {key.removeprefix("out_"): value for key, value in arrays.items() if key.startswith("out_")}
    assert set(wanted) <= set(found)
    for key, value in wanted.items():
        atol = TOLERANCES.get(name, {}).get(key, 2e-5)
        np.testing.assert_allclose(np.asarray(found[key]), value, atol=atol, rtol=0, err_msg=f"{name}: {key}")


def require_written_back(folder: Path, params) -> None:
    """Require that all tensors of a folder, and no others, are written back byte for byte."""
    state, config = read_state(folder), config_of(folder)
    component = component_of(config)
    module = component.build(config, np.float32)
    back = component.weight_map(module, state).state(params)
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert back[name].tobytes() == tensor.tobytes(), name


def require_count(name: str, *, computed: int = 0) -> None:
    """Require the published numbers of parameters and tensors; `computed` of the parameters are constants here."""
    published = COUNTS[name]
    component = component_of({"_class_name": published["cls"]})
    module = component.build(published["config"], np.float32)
    shapes = component.shapes(module)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) - computed == published["params"]
    assert len(component.weight_map(module, ()).names()) == published["tensors"]
