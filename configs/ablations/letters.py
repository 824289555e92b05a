"""What a network must be told to spell: words, bytes, a canvas of the letters, or bytes and canvas.

Liu et al. 2023, "Character-Aware Models Improve Visual Text Rendering" (arXiv:2212.10562): models that read characters
spell better than those that read tokens of whole words. A list of words has no token for a string that it never saw, so
its accuracy on held-out strings is chance. The canvas comes from Yang et al. 2023 (arXiv:2305.18259).

Expected: nothing published at this size. With a canvas the network need not learn strings, only how letters are
painted.

    python -m experiments.prepare_data --dataset=glyphs
    python -m experiments.ablate --config=configs/ablations/letters.py --workdir=runs/letters_conditions
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.letters import get_config as letters

SEEDS = (0, 1, 2)
BASELINE = {"told": "bytes"}
METRIC = "word_accuracy"


def get_config() -> ConfigDict:
    """Bytes, without a canvas."""
    config = letters("bytes")
    config.log.sample_every = 0
    return config


def sweep_told() -> Iterator[tuple[str, dict[str, Any]]]:
    """The conditions; at length 1, only the token that begins a text is left of it."""
    yield "words", {"conditioning.text.tokenizer": {"name": "words", "most": 4_000}, "conditioning.text.length": 24}
    yield "bytes", {}
    yield "canvas", {"conditioning.text.canvas": 32, "conditioning.text.length": 1}
    yield "both", {"conditioning.text.canvas": 32}
