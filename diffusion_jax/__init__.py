"""diffusion_jax: TPU-first diffusion research in JAX and Flax.

import diffusion_jax as dj

model, params = dj.load_model("runs/digits")
dj.sample(model, params, labels=[3, 7], guidance_scale=1.5)
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "Pipeline", "Samples", "__version__", "load_model", "sample", "save_model", "train_step"]

_FROM = {
    "load_model": "loading",
    "save_model": "systems",
    "Model": "systems",
    "Samples": "data.samples",
    "sample": "tasks",
    "train_step": "training",
    "Pipeline": "pipelines",
}


def __getattr__(name: str) -> Any:
    """Import the name when it is first used, so that nobody waits for rooms of the package that are not needed."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
