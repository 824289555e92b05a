"""Classes of published models: for each its module from config.json, and its map of names."""

from diffusion_jax.weights.published import joint_transformer, packed_transformer

__all__ = ["joint_transformer", "packed_transformer"]
