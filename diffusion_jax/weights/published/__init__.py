"""Classes of published models: for each its config.json, and its tensors' names. Importing fills COMPONENTS."""

from diffusion_jax.weights.published import controlnet, unet

__all__ = ["controlnet", "unet"]
