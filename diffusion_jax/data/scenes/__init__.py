"""Scenes: generated pictures of coloured shapes, with their graph, their captions and an exact reader.

    options -> composing: what is where, from (seed, index) -> painting: bytes
                                                            -> captions: words, and what they require
    bytes -> reading: what is seen -> graph.Requirement: whether it is what was asked for

`source` makes the data set "scenes" of them; `prompts` asks for scenes by category, as GenEval does.
"""

from diffusion_jax.data.scenes.composing import Arrangement, SceneOptions, compose, held_out_pairs, training_pairs
from diffusion_jax.data.scenes.graph import Requirement, Scene, SceneObject, Wanted
from diffusion_jax.data.scenes.painting import masks, paint
from diffusion_jax.data.scenes.source import VERSION, SceneSource
from diffusion_jax.data.scenes.vocabulary import COLOURS, DENSITIES, SHAPES, SIZES, SPLITS

__all__ = [
    "COLOURS",
    "DENSITIES",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "VERSION",
    "Arrangement",
    "Requirement",
    "Scene",
    "SceneObject",
    "SceneOptions",
    "SceneSource",
    "Wanted",
    "compose",
    "held_out_pairs",
    "masks",
    "paint",
    "training_pairs",
]
