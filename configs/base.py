"""What every config starts from: the fields of the runner with their defaults.

docs/config.md lists them with their meanings; `experiments.train --config=FILE --help` shows those of a config.
"""

from ml_collections import ConfigDict

from experiments.ground import fields


def runner() -> ConfigDict:
    """A config with all fields of the runner; configs that start from it set those without a default."""
    return fields.runner()
