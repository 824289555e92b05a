"""Code outside the library asks parts for their properties; it never checks the name or type of a registered part."""

import ast
import importlib

import pytest

from diffusion_jax import conditioning, models, objectives, parallel, samplers, schedulers, training
from diffusion_jax.conditioning import Conditioner
from diffusion_jax.data.prompts import TOKENIZERS, PromptTokenizer
from diffusion_jax.models.autoencoders import CODECS, Codec
from diffusion_jax.models.encoders import TEXT_ENCODERS, Encoder
from tests.processes import ROOT

REGISTRIES = (
    *(models.MODELS, CODECS, TEXT_ENCODERS, TOKENIZERS, conditioning.CONDITIONERS, parallel.LAYOUTS),
    *(objectives.OBJECTIVES, objectives.WEIGHTINGS, samplers.SAMPLERS, samplers.GUIDANCE),
    *(samplers.PROJECTIONS, samplers.INVERSIONS, schedulers.SCHEDULES, schedulers.PREDICTIONS, schedulers.GRIDS),
    *(schedulers.TIME_INPUTS, schedulers.TIME_SAMPLERS, schedulers.TOKEN_SCHEDULES, training.OPTIMIZERS),
)
NAMES = {name for registry in REGISTRIES for name in registry} - {"none"}
BASES = (
    *(models.Network, Codec, Encoder, PromptTokenizer, Conditioner, parallel.Layout, objectives.Objective),
    *(samplers.Sampler, samplers.TokenSampler, samplers.Rule, schedulers.NoiseSchedule, schedulers.PredictionKind),
)
FILES = sorted(path for room in ("experiments", "benchmarks") for path in (ROOT / room).rglob("*.py"))
OLD_NAMES = "renamed.py"  # translates configs of earlier versions, which used these names
HERE = ast.parse('x.name == "edm" or x["name"] in ("edm", 1) or getattr(x, "scale", 0) or isinstance(x, Sampler)')


def names_asked(tree):
    """Yield the lines that compare an object's name with the name of a registered part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(map(_is_name, (node.left, *node.comparators))):
            found = {one.value for side in (node.left, *node.comparators) for one in ast.walk(side) if _is_text(one)}
            if found & NAMES:
                yield node.lineno


def _is_name(node):
    is_field = isinstance(node, ast.Subscript) and _is_text(node.slice) and node.slice.value == "name"
    return is_field or (isinstance(node, ast.Attribute) and node.attr == "name")


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def guesses(tree):
    """Yield the lines that call `getattr` with a default, except for Python's own attributes."""
    for node in ast.walk(tree):
        is_guess = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) == 3
        if is_guess and not (_is_text(node.args[1]) and node.args[1].value.startswith("__")):
            yield node.lineno


def types_asked(tree, names):
    """Yield the lines that test for an instance of a registered class; `names` maps the file's imported names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            classes = [names.get(one.id) for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)]
            if any(isinstance(one, type) and issubclass(one, BASES) for one in classes):
                yield node.lineno


def imported(tree):
    """The objects that a file imports from this package, by name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_jax"):
            module = importlib.import_module(node.module)
            found |= {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
    return found


def test_what_is_looked_for_is_found():
    assert list(names_asked(HERE)) == [1, 1]
    assert list(guesses(HERE)) == [1]
    assert list(types_asked(HERE, {"Sampler": samplers.Sampler})) == [1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_parts_are_asked_and_not_named(path):
    tree = ast.parse(path.read_text())
    assert not list(guesses(tree)), "give the part's base class the property"
    assert not list(types_asked(tree, imported(tree))), "give the part's base class a property that says it"
    if path.name != OLD_NAMES:
        assert not list(names_asked(tree)), "give the part's base class a property that says it"
