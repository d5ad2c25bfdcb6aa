"""Imports every part that comes with paramsmith, each of which registers itself."""

from __future__ import annotations

import importlib
import pkgutil

ROOMS = ("encoders", "decoders", "parametrizations", "codecs", "priors", "objectives", "families", "generators")

for _room in ROOMS:
    _package = importlib.import_module(f".{_room}", __package__)
    for _found in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f".{_room}.{_found.name}", __package__)
