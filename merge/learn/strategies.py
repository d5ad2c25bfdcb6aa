"""Where to look for the best point of a score, in which order: sibling functions of one signature.

Each calls `score(point)`, higher is better, -inf where there is none, until it has looked enough or `score` raises
Spent. It is deterministic: the same scores and seed give the same points, which is what a resumed search rests on.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from paramsmith.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np

Point: TypeAlias = tuple[float, ...]
Score: TypeAlias = Callable[[Point], float]
Bounds: TypeAlias = Sequence[tuple[float, float]]
Strategy: TypeAlias = Callable[[Score, Bounds, Point, int, int], None]

GOLDEN = (math.sqrt(5) - 1) / 2
_FINE = 1e-3  # of the range of a coordinate: what is nearer than this is one point
_COARSE = 9


class Spent(Exception):
    """The budget is used up."""


def line(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """One number: an even grid, then a golden section between the neighbours of its best point."""
    ((low, high),) = bounds
    count = max(3, min(_COARSE, budget // 2))
    points = [low + (high - low) * i / (count - 1) for i in range(count)]
    order = sorted(points, key=lambda x: abs(x - (low + high) / 2))  # from the middle out: a small budget begins well
    found = {x: score((x,)) for x in order}
    best = max(range(count), key=lambda i: found[points[i]])
    a, b = points[max(best - 1, 0)], points[min(best + 1, count - 1)]
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    at_c, at_d = score((c,)), score((d,))
    while b - a > _FINE * (high - low):
        if at_c >= at_d:
            b, d, at_d = d, c, at_c
            c = b - GOLDEN * (b - a)
            at_c = score((c,))
        else:
            a, c, at_c = c, d, at_d
            d = a + GOLDEN * (b - a)
            at_d = score((d,))


def coordinate(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """One number after the other, again and again, on ever finer lines through the best point so far."""
    now, best, width = start, score(start), 1.0
    while width > _FINE:
        for i, (low, high) in enumerate(bounds):
            steps = (width * (high - low) * share for share in (-1.0, -0.5, 0.5, 1.0))
            tried = dict.fromkeys(min(max(now[i] + step, low), high) for step in steps)
            centre = now
            for x in tried:
                point = (*centre[:i], x, *centre[i + 1 :])
                found = score(point)
                if found > best:
                    now, best = point, found
        width /= 2


def grid(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """`budget` even steps over one number."""
    ((low, high),) = bounds
    for i in range(budget):
        score((low + (high - low) * i / max(budget - 1, 1),))


def pair_grid(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """Two weights of sum 1: (1 - g/(G-1), g/(G-1)) for g = 0 ... G-1, from the first model to the second."""
    for g in range(budget):
        share = g / max(budget - 1, 1)
        score((1 - share, share))


def dirichlet(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """`budget` draws of weights of sum 1, uniform over the simplex."""
    drawn = _generator(seed)
    for _ in range(budget):
        score(tuple(drawn.dirichlet([1.0] * len(bounds)).tolist()))


def evolution(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """Differential evolution (Storn and Price), scipy's, from the start and points drawn within the bounds."""
    from scipy.optimize import differential_evolution

    drawn = _generator(seed)
    size = max(5, min(15 * len(bounds), budget // 5))
    lows, highs = (_array(side) for side in zip(*bounds, strict=True))
    population = lows + (highs - lows) * drawn.random((size, len(bounds)))
    population[0] = start
    # `seed` is called rng since scipy 1.15, which takes the old name too
    how: dict[str, Any] = {"init": population, "seed": drawn}
    differential_evolution(
        lambda x: -score(tuple(x.tolist())),
        list(bounds),
        maxiter=budget,
        tol=0.0,
        **how,
        polish=False,
        workers=1,
    )


def cma(score: Score, bounds: Bounds, start: Point, budget: int, seed: int) -> None:
    """CMA-ES (Hansen), of the package cma, with a first step of a sixth of the range; needs two numbers or more."""
    if len(bounds) < 2:
        raise InvalidInput("cma searches two numbers or more", "for one take --strategy line")
    try:
        with warnings.catch_warnings(action="ignore"):  # it misses a package for plots, which nobody asked for
            package = importlib.import_module("cma")
    except ImportError:
        raise InvalidInput("--strategy cma needs the package cma", "pip install 'paramsmith[search]'") from None
    drawn = _generator(seed)
    lows, highs = (_array(side) for side in zip(*bounds, strict=True))
    options = {"bounds": [0, 1], "seed": math.nan, "randn": lambda *shape: drawn.standard_normal(shape), "verbose": -9}
    inner = package.CMAEvolutionStrategy(((_array(start) - lows) / (highs - lows)).tolist(), 1 / 6, options)
    worst = 0.0
    while not inner.stop():
        asked = inner.ask()
        scores = [score(tuple((lows + (highs - lows) * x).tolist())) for x in asked]
        finite = [s for s in scores if math.isfinite(s)]
        worst = min([worst, *finite])
        # its arithmetic has no place for an infinity: just below all that was seen is ranked the same
        inner.tell(asked, [-s if math.isfinite(s) else 1 - worst for s in scores])


def _generator(seed: int) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(seed)


def _array(values: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    import numpy as np

    return np.asarray(values, dtype=np.float64)
