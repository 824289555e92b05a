"""configs/imagenet256_dit_xl2.py with a small network on latents of 256x256, which are 16384 tokens.

Topology: TPU v5e 2x2 (4 chips); used by a test.
"""

from ml_collections import ConfigDict

from configs.imagenet256_dit_xl2 import get_config as whole


def get_config() -> ConfigDict:
    config = whole()
    config.model.size = "S/2"
    config.data.image_size = 256
    config.data.options = ConfigDict(dict(size=256))
    return config
