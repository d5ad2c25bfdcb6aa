"""What a selection is worth: the candidates on the data that is reported on, beside the one that was kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from .drawing import Draw
from .roles import Data, Score
from .selectors import Selected


@dataclass(frozen=True)
class Judgement:
    """Scores on the data that is reported on, and what they cost.

    `selected`: of what was kept; `mean`, `std`: of one sample, over those that it was chosen from; `oracle`: of the
    best of these, chosen by the report data itself, which bounds any selector. `seconds`: of drawing and scoring one.
    """

    selected: float
    mean: float
    std: float
    oracle: float
    k: int
    seconds: float


def judged(selected: Selected, draw: Draw, data: Data, score: Score, k: int | None = None) -> Judgement:
    """The selection, and the first k samples (those it was from, unless told), on the report data."""
    count = selected.k if k is None else k
    started = time.perf_counter()
    found = [float(score(draw(number), data.report)) for number in range(count)]
    seconds = (time.perf_counter() - started) / max(1, count)
    known = [value for value in found if not math.isnan(value)] or [math.nan]
    mean = math.fsum(known) / len(known)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known))
    whole = float(score(selected.weights, data.report))
    return Judgement(whole, mean, std, max(known), count, seconds)
