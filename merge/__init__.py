"""Merging: a list of checkpoints becomes one. `merge` takes folders, `merge_state_dicts` takes dicts in memory."""

from __future__ import annotations

from .api import MergeReport, merge, merge_state_dicts, plan, run
from .options import Push, RunOptions

__all__ = ["MergeReport", "Push", "RunOptions", "merge", "merge_state_dicts", "plan", "run"]
