"""Published text-to-image models: from a folder and a prompt to pictures, by the names that their users know."""

from diffusion_jax.pipelines.pipeline import Pictures, Pipeline
from diffusion_jax.pipelines.scheduling import Scheduler

__all__ = ["Pictures", "Pipeline", "Scheduler"]
