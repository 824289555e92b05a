"""diffusion_jax: TPU-first diffusion research in JAX and Flax."""

__version__ = "0.1.0"
