"""The runner: train, sample, evaluate, prepare data. Thin: parse, wire, loop, report."""

from importlib import import_module
from types import ModuleType

_FORMER = {"workdir": "experiments.ground.workdir"}
"""Modules that scripts of users import from here, where they were before there were rooms."""


def __getattr__(name: str) -> ModuleType:
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(_FORMER[name])
