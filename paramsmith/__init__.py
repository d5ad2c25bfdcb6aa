"""paramsmith: merge model checkpoints, and generate new ones, by streaming. Importing it loads nothing else."""

from __future__ import annotations

__version__ = "0.1.0"
