"""What reads the words: a list of words or bytes, and how deep the transformer is that is trained along.

Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
(arXiv:2205.11487), section 4.1: the text encoder counts for more than the size of the network. Theirs are frozen and
large; these are trained with the network. A frozen one from a folder is
named by conditioning.text.encoder, {"name": "bert", "folder": FOLDER}.

Expected: nothing published at this size. Bytes need a transformer to become words, a list of words hardly does.

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
    """What a text is cut into; the length holds the longest sentence."""
    yield "words", {"conditioning.text.tokenizer": {"name": "words", "most": 200}, "conditioning.text.length": 20}
    yield "bytes", {"conditioning.text.tokenizer": {"name": "bytes"}, "conditioning.text.length": 80}


def sweep_depth() -> Iterator[tuple[str, dict[str, Any]]]:
    """Blocks of the transformer."""
    for depth in (1, 2, 4):
        yield f"{depth}", {"conditioning.text.encoder.depth": depth}
