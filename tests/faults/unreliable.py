"""The digits recipe on the data set `unreliable`, or on a folder of images (`unreliable.py:FOLDER`)."""

from ml_collections import ConfigDict

from configs import digits_unet
from tests.faults import unreliable_data  # noqa: F401 - registers the data set


def get_config(folder: str = "") -> ConfigDict:
    """The config; every step reads its data from storage."""
    config = digits_unet.get_config()
    config.data.dataset = "folder" if folder else "unreliable"
    config.data.memory_limit = 0
    if folder:
        config.data.options = dict(path=folder, channels=1)
        config.data.validation_split = ""
    return config
