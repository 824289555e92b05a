"""Guidance: rules by which several predictions for one xt become the one that a sampler is given.

    rule                what it does                                                            paper
    none                the conditional prediction
    classifier_free     away from the unconditional prediction                                  2207.12598
    negative            away from what the sample shall not be
    autoguidance        away from a worse network                                               2406.02507
    two_scales          two conditions, each with a scale of its own                            2211.09800
    apg                 classifier_free without the part along the conditional x0, with memory  2410.02416
    dynamic_threshold   classifier_free, with x0 brought back into the range of pixels          2205.11487
    classifier          towards what a classifier says                                          2105.05233

Every rule has an `interval` of noise levels (2404.07724) and a `rescale` (2305.08891); linear ones may keep what they
add for several steps (`reuse`). `guided` binds a rule to a model.
"""

from diffusion_jax.samplers.guidance.classifier import Classifier, of_clean, towards
from diffusion_jax.samplers.guidance.linear import (
    Autoguidance,
    ClassifierFree,
    Negative,
    TwoScales,
    extrapolated,
    extrapolated_twice,
)
from diffusion_jax.samplers.guidance.projected import AdaptiveProjected
from diffusion_jax.samplers.guidance.rule import (
    GUIDANCE,
    NoGuidance,
    Rule,
    guided,
    in_interval,
    name_of,
    network_evaluations,
    rescaled,
    with_x0,
)
from diffusion_jax.samplers.guidance.thresholding import DynamicThreshold, thresholded

__all__ = [
    "GUIDANCE",
    "AdaptiveProjected",
    "Autoguidance",
    "Classifier",
    "ClassifierFree",
    "DynamicThreshold",
    "Negative",
    "NoGuidance",
    "Rule",
    "TwoScales",
    "extrapolated",
    "extrapolated_twice",
    "guided",
    "in_interval",
    "name_of",
    "network_evaluations",
    "of_clean",
    "rescaled",
    "thresholded",
    "towards",
    "with_x0",
]
