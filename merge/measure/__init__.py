"""Statistics of a model on data: forward and backward passes to a file that a merge reads."""

from __future__ import annotations

from .fisher import measure_fisher
from .gram import measure_gram
from .moments import measure_moments
from .regmean_plusplus import measure_sequential_grams
from .subject import Report

__all__ = ["Report", "measure_fisher", "measure_gram", "measure_moments", "measure_sequential_grams"]
