"""A config that a program has written: `--config=configs/from_json.py:path/to/config.json`.

A run's own `config.json` is one: it trains the same run again in another workdir.

    python -m experiments.train --config=configs/from_json.py:runs/digits/config.json --workdir=runs/again
"""

from ml_collections import ConfigDict

from diffusion_jax.files import read_json


def get_config(path: str) -> ConfigDict:
    """The config in a JSON file."""
    return ConfigDict(read_json(path, repeats=False))
