"""The runner: train, sample, evaluate, prepare data. It only parses, builds, loops and reports."""

from importlib import import_module
from types import ModuleType

_FORMER = {"workdir": "experiments.ground.workdir"}
"""Modules that users' scripts import from here, where they were before they moved into rooms."""


def __getattr__(name: str) -> ModuleType:
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(_FORMER[name])
