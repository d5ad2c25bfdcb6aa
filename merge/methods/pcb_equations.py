"""PCB-Merging as the paper's equations have it, which none of the authors' programs follows; see pcb.py.

b_i = softmax(N Norm(d_i d_i)) * sum_j softmax(Norm(d_i d_j)), softmax and the min-max Norm over the whole model;
weights Norm(m_i b_i), m_i the share of largest scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paramsmith.ops import keep, known, or_one
from paramsmith.params import Params, Resolved
from paramsmith.surveys import Extremes, OrderStatistic, Seen, Sum


def products(deltas: Tensor) -> Tensor:
    """d_i d_j of every pair, i major: (models, n) -> (models**2, n)."""
    deltas = known(deltas)
    return torch.cat([deltas[i : i + 1] * deltas for i in range(len(deltas))])


def competing(deltas: Tensor, seen: Seen) -> Tensor:
    """1 for a model whose entries differ in magnitude, 0 for one that cannot compete: (models, 1)."""
    ends = seen["ends"][:: len(deltas) + 1]
    return torch.sign(ends[:, 1:] - ends[:, :1])


def exponentials(deltas: Tensor, seen: Seen, p: Resolved[Any]) -> Tensor:
    """exp(N Norm(d_i d_i)), then exp(Norm(d_i d_j)): (models + models**2, n); N counts the models that compete."""
    low, high = seen["ends"][:, :1], seen["ends"][:, 1:]
    norm = (products(deltas) - low) / or_one(high - low)
    return torch.exp(torch.cat([competing(deltas, seen).sum() * norm[:: len(deltas) + 1], norm]))


def scores(deltas: Tensor, seen: Seen, p: Resolved[Any]) -> Tensor:
    """The scores b_i, 0 for a model that cannot compete: (models, n)."""
    count, alive = len(deltas), competing(deltas, seen)
    soft = exponentials(deltas, seen, p) / seen["totals"].to(deltas.dtype)
    return alive * soft[:count] * (soft[count:].view(count, count, -1) * alive).sum(1)


SURVEYS = (
    Extremes("ends", lambda deltas, seen, p: products(deltas)),
    Sum("totals", exponentials, lambda totals, p: totals[:, None], scope="model"),
)


def cut(ranks: Callable[[int, Resolved[Any]], Sequence[Sequence[int]]]) -> OrderStatistic:
    """The smallest, the threshold and the largest of each model's scores."""
    return OrderStatistic("cut", scores, lambda count, p: [[0, *row] for row in ranks(count, p)], notes=idle)


def idle(bounds: Tensor) -> Mapping[int, str]:
    """Models whose scores are all equal: they cannot compete."""
    ends = enumerate(bounds.tolist())
    return {i: "its task vector is zero or constant: skipped" for i, (lowest, _, most) in ends if lowest == most}


def weights(deltas: Tensor, seen: Seen) -> Tensor:
    """Norm(m_i b_i), 0 for a model that cannot compete: (models, n)."""
    lowest, least, most = (seen["cut"][:, k : k + 1] for k in range(3))
    score = scores(deltas, seen, Resolved(Params(), {}, {}))
    floor = keep(lowest == least, least)  # where nothing is dropped, the smallest score and not 0 becomes 0
    return competing(deltas, seen) * (keep(score >= least, score) - floor) / or_one(most - floor)
