"""Classes of published models: for each its config.json, and its tensors' names. Importing fills COMPONENTS."""

from diffusion_jax.weights.published import (
    autoencoders,
    clip,
    controlnet,
    joint_transformer,
    packed_transformer,
    qwen3,
    small_autoencoders,
    t5,
    unet,
)

__all__ = [
    "autoencoders",
    "clip",
    "controlnet",
    "joint_transformer",
    "packed_transformer",
    "qwen3",
    "small_autoencoders",
    "t5",
    "unet",
]
