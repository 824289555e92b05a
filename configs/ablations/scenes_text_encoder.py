"""How text is read: a list of words or bytes, and the depth of the text transformer that is trained with the network.

Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
(arXiv:2205.11487), section 4.1: the text encoder matters more than the size of the network. The paper's encoders are
frozen and large; the encoders here are trained with the network. A frozen encoder from a folder is named by
conditioning.text.encoder, {"name": "bert", "folder": FOLDER}.

Expected: nothing published at this size. Bytes need a transformer to become words; a list of words hardly needs one.

    python -m experiments.ablate --config=configs/ablations/scenes_text_encoder.py --workdir=runs/scenes_text_encoder
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.scenes_text_to_image import get_config as scenes

SEEDS = (0, 1, 2)
BASELINE = {"tokens": "words", "depth": "2"}
METRIC = "prompt_adherence"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = scenes("small")
    config.data.options.update(max_objects=2)
    config.data.options.density = "sentence"
    config.log.sample_every = 0
    config.evaluation.metrics = ("prompt_adherence", "proxy_fd")
    return config


def sweep_tokens() -> Iterator[tuple[str, dict[str, Any]]]:
    """The units of a text; the length fits the longest sentence."""
    yield "words", {"conditioning.text.tokenizer": {"name": "words", "most": 200}, "conditioning.text.length": 20}
    yield "bytes", {"conditioning.text.tokenizer": {"name": "bytes"}, "conditioning.text.length": 80}


def sweep_depth() -> Iterator[tuple[str, dict[str, Any]]]:
    """The number of blocks of the transformer."""
    for depth in (1, 2, 4):
        yield f"{depth}", {"conditioning.text.encoder.depth": depth}
