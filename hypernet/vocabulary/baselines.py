"""What an embedding generator has to beat: OFA's neighbours, ridge regression, the mean, and chance.

Each is a function of the pairs that are known and the bags that are asked for, and gives coordinates (bags, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.device import one_thread_an_operation
from paramsmith.hypernet.seeding import normal

from .data import Vocabulary
from .words import Bags

Baseline = Callable[[Vocabulary, Bags], Tensor]
NEIGHBOURS, TEMPERATURE = 10, 0.1
_AT_ONCE = 1024  # rows of similarities at once


def ofa(known: Vocabulary, bags: Bags, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE) -> Tensor:
    """The mean of the nearest known tokens, by similarity: y = sum_k softmax(cos_k / T) y_k over the nearest.

    A token's vector is the mean of those of its words. Paper: OFA, arXiv:2311.08849.
    """
    with one_thread_an_operation():
        there = functional.normalize(known.bags.means(known.vectors), dim=1)  # (pairs, width)
        asked = functional.normalize(bags.means(known.vectors), dim=1)  # (bags, width)
        found = [
            neighbour_weights(piece @ there.mT, neighbours, temperature)
            for piece in torch.split(asked, _AT_ONCE)
            if len(piece)
        ]
        made = [torch.einsum("bk,bkr->br", weights, known.targets[places]) for weights, places in found]
        return torch.cat(made) if made else known.targets.new_empty(0, known.targets.shape[1])


def neighbour_weights(cosines: Tensor, neighbours: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Weights and places of the nearest, (bags, k) both: softmax over the k largest of (bags, pairs).

    >>> weights, places = neighbour_weights(torch.tensor([[0.9, 0.8, 0.1, -0.3]]), 2, 0.1)
    >>> weights, places
    (tensor([[0.7311, 0.2689]]), tensor([[0, 1]]))
    """
    nearest, places = cosines.topk(min(neighbours, cosines.shape[1]), dim=1)
    return torch.softmax(nearest / temperature, dim=1), places


def ridge(known: Vocabulary, bags: Bags) -> Tensor:
    """Linear regression on the mean word vector, its penalty chosen by leaving one pair out at a time."""
    with one_thread_an_operation():
        x = known.bags.means(known.vectors).double()  # (pairs, width)
        y = known.targets.double()  # (pairs, rank)
        slope, middle = ridge_fit(x, y)
        asked = bags.means(known.vectors).double()
        return ((asked - x.mean(0)) @ slope + middle).float()


def ridge_fit(x: Tensor, y: Tensor, penalties: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """W (width, rank) and the mean of y, of y = (x - mean x) W + mean y; of the penalties the one that errs least.

    min |y - X W|^2 + p |W|^2. Leaving pair i out gives the error e_i / (1 - h_i), e the residual, h_i = 1/n plus the
    diagonal of X (X^T X + p)^-1 X^T. `penalties` are in units of the mean eigenvalue of X^T X.
    """
    even, middle = x - x.mean(0), y.mean(0)
    values, vectors = torch.linalg.eigh(even.mT @ even)  # (width)
    values = values.clamp_min(0)
    turned, aimed = even @ vectors, vectors.mT @ (even.mT @ (y - middle))  # (pairs, width), (width, rank)
    unit = float(values.mean()) or 1.0
    best: tuple[float, Tensor] | None = None
    for penalty in penalties or [10.0**power for power in range(-8, 5)]:
        inverse = 1 / (values + penalty * unit)
        slope = inverse[:, None] * aimed
        pull = (1 / len(x) + (turned.square() * inverse).sum(1)).clamp_max(1 - 1e-9)  # (pairs)
        error = float((((y - middle - turned @ slope) / (1 - pull)[:, None]) ** 2).sum())
        if best is None or error < best[0]:
            best = error, vectors @ slope
    assert best is not None  # there is a penalty
    return best[1], middle


def mean(known: Vocabulary, bags: Bags) -> Tensor:
    """The mean of the known rows, whatever is asked for."""
    return known.targets.mean(0).expand(len(bags), -1).clone()


def random(known: Vocabulary, bags: Bags) -> Tensor:
    """N(mean, std) of each coordinate over the known rows, drawn by the seed of the vocabulary."""
    spread, middle = torch.std_mean(known.targets, dim=0)
    return middle + spread * normal(known.seed, "random rows", (len(bags), known.targets.shape[1]))


BASELINES: dict[str, Baseline] = {"ofa": ofa, "ridge": ridge, "mean": mean, "random": random}
