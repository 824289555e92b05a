"""Registries: names, suggestions for misspelled names, and arguments."""

import dataclasses

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.registry import Registry


@pytest.fixture
def shapes():
    registry = Registry("shape")

    @registry.register("box", example={"size": 2})
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Box:
        size: int
        sides: tuple[int | tuple[int, ...], ...] = ()

    return registry


def test_builds_from_a_name_or_a_mapping_with_defaults(shapes):
    assert shapes.build("box", size=3).size == 3
    assert shapes.build({"name": "box", "size": 5}, size=3).size == 5, "what the config says wins"
    assert shapes.build("box", size=3, colour="red").size == 3, "what a factory does not know is not forced on it"
    assert shapes.example("box").size == 2
    assert hash(shapes.build({"name": "box", "size": 1, "sides": [1, [2]]})), "lists become tuples"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bax", "unknown shape 'bax'; did you mean 'box'\\? known: box"),
        ({"size": 1}, "a shape needs a `name`; known: box"),
        ({"name": "box", "sise": 1}, "unknown argument of shape 'Box' 'sise'; did you mean 'size'\\?"),
        ({"name": "box"}, "shape 'Box': missing a required"),
    ],
)
def test_wrong_specs_name_the_mend(shapes, spec, message):
    with pytest.raises(UserError, match=message):
        shapes.build(spec)


def test_a_name_is_taken_once(shapes):
    with pytest.raises(ValueError, match="registered already"):
        shapes.register("box")(dict)
