"""A config that a program has written: `--config=configs/from_json.py:path/to/config.json`.

A run's own `config.json` is one: it trains the same run again in another workdir.

    python -m experiments.train --config=configs/from_json.py:runs/digits/config.json --workdir=runs/again
"""

import json

from ml_collections import ConfigDict


def get_config(path: str) -> ConfigDict:
    """The config in a JSON file."""
    with open(path) as file:
        return ConfigDict(json.load(file))
