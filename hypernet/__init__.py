"""Generating weights: train a generator, generate checkpoints with it, evaluate what they are worth.

Names are imported when they are first used, so that `import paramsmith.hypernet` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluation.evaluate import evaluate
    from .generator import Generator
    from .targets.calling import Target
    from .targets.target import TargetSpec
    from .training.learning import train
    from .writing.generation import generate

__all__ = ["Generator", "Target", "TargetSpec", "evaluate", "generate", "train"]

_HOMES = {  # name -> the module that it is in
    "Generator": "generator",
    "Target": "targets.calling",
    "TargetSpec": "targets.target",
    "evaluate": "evaluation.evaluate",
    "generate": "writing.generation",
    "train": "training.learning",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
