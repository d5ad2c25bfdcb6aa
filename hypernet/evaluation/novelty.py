"""Whether samples are new, or copies of the networks that were learned from: by their weights and by their mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput

COPY = 1 / 3  # a copy is three times nearer to its original than to any other network


@dataclass(frozen=True)
class Novelty:
    """Distances of samples to the networks of training, beside those of networks that were never seen.

    `ratio`: mean of d1/d2, of the distances to the nearest and second nearest network; near 0: copies. `copies`: the
    share of samples with d1 < d2/3. `distance`: mean d1 over the mean distance of the networks of training to the
    nearest of the others. `held_out`: the same of networks held out, the yardstick for it; None where there are none.
    """

    ratio: float
    copies: float
    distance: float
    held_out: float | None


def novelty(samples: Tensor, training: Tensor, held_out: Tensor | None = None) -> Novelty:
    """How samples (S, P) stand among the networks of training (M, P), all of them as latents or as weights.

    What a codec leaves out brings networks nearer to each other, so that those held out must have gone through it too.
    InvalidInput for fewer than two networks of training.

    Source: Generative Modeling of Weights: Generalization or Memorization?, arXiv:2506.07998.
    """
    if len(training) < 2:
        raise InvalidInput("novelty is told by two networks of training at least", "give more of the zoo")
    first, second = nearest_two(samples, training)
    among, _ = nearest_two(training, training, leave_out=True)
    scale = float(among.mean()) or 1.0
    seen = None if held_out is None or not len(held_out) else float(nearest_two(held_out, training)[0].mean()) / scale
    return Novelty(
        float((first / second.clamp_min(1e-300)).mean()),
        float((first < COPY * second).double().mean()),
        float(first.mean()) / scale,
        seen,
    )


def nearest_two(a: Tensor, b: Tensor, leave_out: bool = False) -> tuple[Tensor, Tensor]:
    """Distances (n) of each row of `a` (n, P) to the nearest and the second nearest row of `b` (m, P), in fp64.

    `leave_out`: row i of `b` does not count for row i of `a`. With one row left, both are the distance to it.

    >>> nearest_two(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [7.0]]))
    (tensor([1.], dtype=torch.float64), tensor([3.], dtype=torch.float64))
    """
    gaps = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")  # exact for copies
    if leave_out:
        gaps.fill_diagonal_(torch.inf)
    found = gaps.topk(min(2, gaps.shape[1]), largest=False).values
    first, second = found[:, 0], found[:, -1]
    return first, torch.where(second.isinf(), first, second)


def error_overlap(samples: Tensor, training: Tensor) -> Tensor:
    """How far each sample makes the mistakes of one network of training: the largest intersection over union, (S).

    (S, n) and (M, n), bool: which of n test examples are answered wrongly. Networks without any mistake agree: 1.

    >>> error_overlap(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False], [False, False, True]]))
    tensor([0.5000])
    """
    a, b = samples.float(), training.float()
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return torch.where(either > 0, both / either.clamp_min(1), 1.0).amax(1)


def ensemble_gain(logits: Tensor, y: Tensor) -> float:
    """Accuracy of the mean logits of several samples, (S, n, k), less the mean of their own; copies gain nothing."""
    single = (logits.argmax(-1) == y).double().mean()
    together = (logits.mean(0).argmax(-1) == y).double().mean()
    return float(together - single)
