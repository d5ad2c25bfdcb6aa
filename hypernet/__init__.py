"""Generating weights: train a generator, generate checkpoints with it, evaluate what they are worth.

Names are imported when they are first used, so that `import paramsmith.hypernet` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calling import Target
    from .evaluate import evaluate
    from .generation import generate
    from .generator import Generator
    from .learning import train
    from .target import TargetSpec

__all__ = ["Generator", "Target", "TargetSpec", "evaluate", "generate", "train"]

_HOMES = {  # name -> the module that it is in
    "Generator": "generator",
    "Target": "calling",
    "TargetSpec": "target",
    "evaluate": "evaluate",
    "generate": "generation",
    "train": "learning",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found  # also over a module of the same name, which the import has put there
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
