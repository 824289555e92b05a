"""Every number of every registered part has bounds, and an invalid value is reported in one line."""

import dataclasses
import math
from typing import Annotated

import pytest

from diffusion_jax import conditioning, data, metrics, objectives, parallel, samplers, schedulers, training
from diffusion_jax.domains import BOUNDS, Bounds, annotations, check
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS
from diffusion_jax.models.autoencoders import CODECS
from diffusion_jax.registry import Registry

REGISTRIES = {
    "schedule": schedulers.SCHEDULES,
    "prediction": schedulers.PREDICTIONS,
    "time_sampler": schedulers.TIME_SAMPLERS,
    "grid": schedulers.GRIDS,
    "objective": objectives.OBJECTIVES,
    "weighting": objectives.WEIGHTINGS,
    "sampler": samplers.SAMPLERS,
    "model": MODELS,
    "codec": CODECS,
    "conditioner": conditioning.CONDITIONERS,
    "optimizer": training.OPTIMIZERS,
    "layout": parallel.LAYOUTS,
    "metric": metrics.METRICS,
    "dataset": data.datasets,
}
NAMES = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]
NONSENSE = (
    *(math.nan, math.inf, -math.inf, -1, 0, 10**22, 2**63, 1e-320, "", "garbage", None, True, [], {}, (0.9, 0.1)),
    *([math.nan], -0.0, "x" * 5000, "\0", {"a": 1}, 1.5, -7.25, [[]], b"x", 1j),
)


def refusal(registry, spec):
    """The message of the UserError, or None if the part was built."""
    try:
        registry.build(spec)
    except UserError as error:
        return str(error)
    return None


def numeric(kind):
    return kind in (int, float, int | None, float | None)


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_number_has_bounds(kind, name):
    factory = REGISTRIES[kind][name]
    without = [key for key, hint in annotations(factory).items() if numeric(hint) and key not in BOUNDS]
    assert not without, "give the name bounds in diffusion_jax/domains.py"


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_nonsense_is_refused_in_one_line_or_within_bounds(kind, name):
    registry = REGISTRIES[kind]
    example = registry._examples[name]
    for key, hint in annotations(registry[name]).items():
        if not numeric(hint):
            continue
        for value in NONSENSE:
            error = refusal(registry, {"name": name, **example, key: value})
            if error is None:
                assert value is None or BOUNDS[key].holds(value)
            else:
                assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "kind", "bounds"),
    [
        (True, int, Bounds()),
        (1.0, int, Bounds()),
        (2**31, int, Bounds()),
        (math.nan, float, Bounds()),
        (math.inf, float, Bounds()),
        (10**400, float, Bounds()),
        (0, float, Bounds(low=0, above=True)),
        ("1", float, Bounds()),
        (1, bool, Bounds()),
        ((1, -1), tuple[int, ...], Bounds(low=0)),
        ((1,), tuple[int, int], Bounds()),
        ("a\0", str, Bounds()),
        (3, str | None, Bounds()),
    ],
)
def test_what_does_not_fit(value, kind, bounds):
    with pytest.raises(UserError, match=r"^train\.x must be .*, it is "):
        check("train.x", value, kind, bounds)


@pytest.mark.parametrize(
    ("value", "kind", "bounds"),
    [
        (1, float, Bounds()),
        (math.inf, float, Bounds(infinite=True)),
        (None, int | None, Bounds(low=1)),
        ([0.1, 0.2], tuple[float, ...], Bounds(low=0)),
        ((), tuple[float, ...], Bounds(low=0)),
        ("a", str | None, Bounds()),
    ],
)
def test_what_fits(value, kind, bounds):
    check("train.x", value, kind, bounds)


def test_a_part_may_be_narrower_than_its_name():
    registry = Registry("shape")

    @registry.register("box")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Box:
        depth: Annotated[int, Bounds(low=1, high=3)]

    assert registry.build({"name": "box", "depth": 3}).depth == 3
    with pytest.raises(UserError, match="depth must be a whole number of at least 1 and of at most 3, it is 4"):
        registry.build({"name": "box", "depth": 4})
