"""What every config starts from: the fields of the runner with their defaults.

docs/config.md lists them with their meanings; `experiments.train --config=FILE --help` shows those of a config.
"""

from ml_collections import ConfigDict

from experiments.ground import fields


def runner() -> ConfigDict:
    """A config with all fields of the runner. The config that starts from it says what has no default, and its own."""
    return fields.runner()
