"""How a transformer sees the words: by cross-attention, or jointly with the picture.

With cross-attention, each block attends from the picture to the text (PixArt-alpha, Chen et al. 2023,
arXiv:2310.00426). With joint attention, the text is a second stream, and both streams attend to both (MM-DiT, Esser et
al. 2024, arXiv:2403.03206, section 5.1, where the joint form wins at that size). The widths are chosen so that the
floating-point operations of a step differ by less than a fifth.

Expected: nothing published at this size.

    python -m experiments.ablate --config=configs/ablations/scenes_attention.py --workdir=runs/scenes_attention
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.scenes_text_to_image import get_config as scenes

SEEDS = (0, 1, 2)
BASELINE = {"attention": "cross", "text": "sentence"}
METRIC = "prompt_adherence"


def get_config() -> ConfigDict:
    """The config of every cell, before its changes."""
    config = scenes("small")
    config.model = ConfigDict(dict(name="dit", patch_size=3, hidden_size=128, depth=6, num_heads=4))
    config.model.context_by = "cross"
    config.conditioning.text.length = 48
    config.log.sample_every = 0
    config.evaluation.metrics = ("prompt_adherence", "proxy_fd")
    return config


def sweep_attention() -> Iterator[tuple[str, dict[str, Any]]]:
    """Cross-attention or joint attention."""
    yield "cross", {"model.context_by": "cross", "model.hidden_size": 128}
    yield "joint", {"model.context_by": "joint", "model.hidden_size": 112}


def sweep_text() -> Iterator[tuple[str, dict[str, Any]]]:
    """The task: one object from its name, or two objects from a sentence."""
    yield "label", {"data.options.density": "label", "data.options.max_objects": 1}
    yield "sentence", {"data.options.density": "sentence", "data.options.max_objects": 2}
