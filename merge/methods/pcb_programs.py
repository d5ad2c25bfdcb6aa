"""PCB-Merging as the authors' programs have it, none of which follows the paper's equations; see pcb.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paramsmith.ops import known, or_one, tanh
from paramsmith.params import Resolved
from paramsmith.surveys import OrderStatistic, Seen

if TYPE_CHECKING:
    from .pcb import PCB


def clip_ranks(count: int, p: Resolved[PCB]) -> Sequence[Sequence[int]]:
    """The ranks magnitudes are clipped to; the upper one is the authors', one below the quantile."""
    share = 1e-4 if p.options.variant == "reference" else 1e-2
    return [[int(count * share), max(0, int(count * (1 - share) - 1))]] * len(p.values("lambda_"))


def idle(clip: Tensor) -> Mapping[int, str]:
    """Models whose magnitudes are all equal: they cannot compete."""
    ends = enumerate(clip.tolist())
    return {i: "its task vector is zero or constant: skipped" for i, (low, high) in ends if low == high}


def undecided(cut: Tensor) -> Mapping[int, str]:
    """Models whose cut is their largest score, which leaves nothing above it."""
    ends = enumerate(cut.tolist())
    return {i: "none of its scores lies above the cut: skipped" for i, (low, high) in ends if low == high != 0}


clip = OrderStatistic("clip", lambda deltas, seen, p: known(deltas).abs(), clip_ranks, notes=idle)


def clipped(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The values, none below low or above high."""
    return torch.minimum(torch.maximum(values, low), high)


def competition(deltas: Tensor, seen: Seen, p: Resolved[PCB]) -> Tensor:
    """The score of each entry: exp(n u**2) times tanh of its agreement with the others; (models, n)."""
    low, high = seen["clip"][:, :1], seen["clip"][:, 1:]  # (models, 1)
    deltas = known(deltas)
    unit = (clipped(deltas.abs(), low, high) - low) / or_one(high - low)
    alive = torch.sign(high - low)
    within = torch.exp(alive.sum() * unit * unit)
    if p.options.variant == "vision_es":
        signed = torch.sign(deltas) * unit * alive
        return within * sum(tanh(signed * other) for other in signed)
    voice = torch.sign(deltas) * unit if p.options.variant == "vision" else deltas
    return within * tanh(deltas * (voice * alive).sum(0))


def weights(deltas: Tensor, seen: Seen, p: Resolved[PCB]) -> tuple[Tensor, Tensor]:
    """The weight of each entry, 0 for a model that cannot compete, and the clipped task vectors: (models, n) each."""
    low, high = seen["clip"][:, :1], seen["clip"][:, 1:]
    least, most = seen["cut"][:, :1], seen["cut"][:, 1:]
    score = clipped(competition(deltas, seen, p), least, most)
    weight = torch.sign(high - low) * (score - least) / or_one(most - least)
    return weight, torch.sign(deltas) * clipped(deltas.abs(), low, high)
