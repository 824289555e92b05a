"""Classes of published models: their networks, the fields of their configs, and the names of their tensors."""

from diffusion_jax.weights.published import (
    autoencoders,
    clip,
    joint_transformer,
    packed_transformer,
    qwen3,
    small_autoencoders,
    t5,
)

__all__ = ["autoencoders", "clip", "joint_transformer", "packed_transformer", "qwen3", "small_autoencoders", "t5"]
