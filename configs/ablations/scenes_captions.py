"""What captions say: labels, sentences, full descriptions, or all three, at equal compute.

Betker et al. 2023, "Improving Image Generation with Better Captions" (DALL-E 3): networks whose captions say more about
the pictures follow prompts better. Every cell has the same pictures, and the judge uses the same prompts. The last cell
is the control: every picture gets the caption of another picture, so its samples are right only by chance.

Expected: nothing published at this size. Labels name one object of each picture. Properties of two objects, above all
colour binding and position, should therefore be right less often with labels than with sentences and descriptions.

    python -m experiments.ablate --config=configs/ablations/scenes_captions.py --workdir=runs/scenes_captions
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.scenes_text_to_image import get_config as scenes

SEEDS = (0, 1, 2)
BASELINE = {"captions": "mixed"}
METRIC = "prompt_adherence"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = scenes("small")
    config.data.options.max_objects = 2
    config.log.sample_every = 0
    config.evaluation.metrics = ("prompt_adherence", "proxy_fd")
    return config


def sweep_captions() -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind of captions."""
    for density in ("label", "sentence", "description", "mixed"):
        yield density, {"data.options.density": density}
    yield "shuffled", {"data.options.density": "mixed", "data.shuffle_captions": True}
