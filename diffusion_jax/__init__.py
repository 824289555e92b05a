"""diffusion_jax: TPU-first diffusion research in JAX and Flax.

import diffusion_jax as dj

model, params = dj.load_model("runs/digits")
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "Pipeline", "__version__", "generate", "load_model", "save_model"]

_FROM = {
    "load_model": "loading",
    "save_model": "systems",
    "Model": "systems",
    "generate": "tasks",
    "Pipeline": "pipelines",
}


def __getattr__(name: str) -> Any:
    """Import the name when it is first used, so that nobody waits for rooms of the package that are not needed."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
