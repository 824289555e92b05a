"""Models as JSON: every registered part is described and rebuilt unchanged."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import CONDITIONERS, Conditioner, Conditioning, Label
from diffusion_jax.errors import UserError
from diffusion_jax.models import MODELS
from diffusion_jax.models.autoencoders import CODECS
from diffusion_jax.schedulers import INPUT_SCALES, PREDICTIONS, PROCESSES, SCHEDULES, TIME_INPUTS, TOKEN_SCHEDULES
from diffusion_jax.systems.description import _family, describe, rebuild

REGISTRIES = (
    *(MODELS, CODECS, CONDITIONERS, PROCESSES, SCHEDULES, PREDICTIONS, TIME_INPUTS, INPUT_SCALES, TOKEN_SCHEDULES),
)
PARTS = [(registry, name) for registry in REGISTRIES for name in registry]


@pytest.mark.parametrize(("registry", "name"), PARTS, ids=[f"{r.kind}-{n}" for r, n in PARTS])
def test_what_is_registered_is_described_and_rebuilt(registry, name):
    part = registry.example(name)
    text = json.dumps(describe(part), allow_nan=False)
    assert describe(rebuild(json.loads(text))) == describe(part)
    if not any(isinstance(value, np.ndarray) for value in vars(part).values()):  # tables are equal entry by entry
        assert rebuild(json.loads(text)) == part


def test_fields_by_default_are_left_out_and_the_rest_is_there():
    assert describe(Label(num_classes=3)) == {"part": "Label", "num_classes": 3}
    network = MODELS.build("mlp", image_size=2, image_channels=1, dtype=jnp.bfloat16)
    assert describe(network)["dtype"] == {"dtype": "bfloat16"}
    assert rebuild(describe(network)).dtype == jnp.bfloat16
    conditioning = Conditioning(parts=(Label(num_classes=3),), dropout={("label",): 0.1})
    assert rebuild(json.loads(json.dumps(describe(conditioning)))) == conditioning


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"part": "Labell"}, "did you mean 'Label'"),
        ({"part": "Label", "num_clases": 3}, "did you mean 'num_classes'"),
        ({"part": "Label"}, "description of Label is damaged"),
        ({"part": ["Label"]}, "part of a model"),
        ({"items": 3}, "damaged"),
        ({"dtype": "float31"}, "damaged"),
        ({"number": "x"}, "damaged"),
        ({}, "damaged"),
        ({"part": "Popen", "args": "true"}, "unknown part"),
    ],
)
def test_damage_is_one_line(description, message):
    with pytest.raises(UserError, match=message) as error:
        rebuild(description)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_part_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Other:
        x: int = 1

    for value in (Other(), print):
        with pytest.raises(UserError, match="not a part that a file can describe"):
            describe(value)


def test_no_two_conditioners_have_one_name():
    """No two conditioner classes share a name, because a description names a part by its class name."""
    names = [part.__name__ for part in _family(Conditioner) if part.__module__.startswith("diffusion_jax.")]
    assert sorted(names) == sorted(set(names))
