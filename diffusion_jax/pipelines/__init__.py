"""Published text-to-image models: from a folder and a prompt to pictures, with the names of diffusers."""

from diffusion_jax.pipelines.pipeline import Pictures, Pipeline
from diffusion_jax.pipelines.scheduling import Scheduler

__all__ = ["Pictures", "Pipeline", "Scheduler"]
