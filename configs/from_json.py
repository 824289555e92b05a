"""A config that a program has written: `--config=configs/from_json.py:path/to/config.json`.

Every run writes its own `config.json`; with it, the same run can be trained again in another workdir.

    python -m experiments.train --config=configs/from_json.py:runs/digits/config.json --workdir=runs/again
"""

from ml_collections import ConfigDict

from diffusion_jax.files import read_json


def get_config(path: str) -> ConfigDict:
    """The config that a JSON file holds."""
    return ConfigDict(read_json(path, repeats=False))
