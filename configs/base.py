"""The fields of the runner with their defaults, from which every config starts.

docs/config.md lists the fields with their meanings; `experiments.train --config=FILE --help` shows the fields of one
config.
"""

from ml_collections import ConfigDict

from experiments.ground import fields


def runner() -> ConfigDict:
    """A config with all fields of the runner; a config that starts from it sets the fields without a default."""
    return fields.runner()
