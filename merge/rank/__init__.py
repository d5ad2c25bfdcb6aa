"""Which source models to use: scores of models on a task's data, and the ranked table of them."""

from __future__ import annotations

from .features import features_of, predictions_of
from .flips import complementarity, positive_flips
from .osborn import Selection, Source, select
from .ped import Descent, descend
from .table import Ranking, Row, rank
from .transferability import logme, sfda

__all__ = [
    "Descent",
    "Ranking",
    "Row",
    "Selection",
    "Source",
    "complementarity",
    "descend",
    "features_of",
    "logme",
    "positive_flips",
    "predictions_of",
    "rank",
    "select",
    "sfda",
]
