"""Classes of published models: their networks, the fields of their configs, and the names of their tensors. Importing
this package fills COMPONENTS."""

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
