"""Positive flips: what one classifier gets right and another wrong, the room for one to teach the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput


def positive_flips(source: Tensor, target: Tensor, labels: Tensor) -> float:
    """The share of examples that the source gets right and the target wrong: mean [source = y and target != y].

    All three are (n,) integers: predicted classes and labels.

    Paper: Roth et al., arXiv:2310.17653.

    >>> positive_flips(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]))
    0.3333333333333333
    """
    return float(complementarity([source, target], labels)[0, 1])


def complementarity(predictions: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The positive flips of every pair, (models, models) float64: row right, column wrong; zeros on the diagonal.

    InvalidInput when the predictions are not all for the same examples.
    """
    if not len(labels) or any(p.shape != labels.shape for p in predictions):
        told = f"predictions {[list(p.shape) for p in predictions]} and labels {list(labels.shape)} do not fit"
        raise InvalidInput(told, "predict for the same examples, at least one")
    right = torch.stack([p == labels for p in predictions]).double()
    return right @ (1 - right).T / len(labels)
