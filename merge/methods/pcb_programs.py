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
    return [[int(count * share), max(0, int(count * (1 - share) - 1))]] * p.models


def idle(clip: Tensor) -> Mapping[int, str]:
    """Models whose magnitudes are all equal: they cannot compete."""
    ends = enumerate(clip.tolist())
    return {i: "its task vector is zero or constant: skipped" for i, (low, high) in ends if low == high}


def undecided(cut: Tensor) -> Mapping[int, str]:
    """Models whose cut is their largest score, which leaves nothing above it."""
    ends = enumerate(cut.tolist())
    return {i: "none of its scores lies above the cut: skipped" for i, (low, high) in ends if low == high != 0}


def columns(values: Tensor) -> list[Tensor]:
    """The columns of a small matrix, each (models, 1)."""
    return [values[:, k : k + 1] for k in range(values.shape[1])]


def bounds(clip: Tensor) -> Tensor:
    """For each model low, high, 1/(high - low), whether it can compete, and how many can: (models, 5)."""
    low, high = columns(clip)
    alive = torch.sign(high - low)
    return torch.cat([low, high, alive / or_one(high - low), alive, alive.sum().expand_as(alive)], 1)


def gain(cut: Tensor) -> Tensor:
    """For each model the threshold, the largest score, and 1 over their distance: (models, 3)."""
    least, most = columns(cut)
    return torch.cat([least, most, torch.sign(most - least) / or_one(most - least)], 1)


clip = OrderStatistic("clip", lambda deltas, seen, p: known(deltas).abs(), clip_ranks, then=bounds, notes=idle)


def clipped(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The values, none below low or above high."""
    return torch.minimum(torch.maximum(values, low), high)


def competition(deltas: Tensor, seen: Seen, p: Resolved[PCB]) -> Tensor:
    """The score of each entry: exp(n u**2) times tanh of its agreement with the others; (models, n)."""
    low, high, scale, alive, rivals = columns(seen["clip"])
    unit = (clipped(deltas.abs(), low, high) - low) * scale
    within = torch.exp(rivals * unit * unit)
    if p.options.variant == "vision_es":
        signed = torch.sign(deltas) * unit
        return known(within * sum(tanh(signed * other) for other in signed))
    voice = torch.sign(deltas) * unit if p.options.variant == "vision" else deltas * alive
    return known(within * tanh(deltas * voice.sum(0)))


def weights(deltas: Tensor, seen: Seen, p: Resolved[PCB]) -> tuple[Tensor, Tensor]:
    """The weight of each entry, 0 for a model that cannot compete, and the clipped task vectors: (models, n) each."""
    low, high, _, alive, _ = columns(seen["clip"])
    least, most, factor = columns(seen["cut"])
    weight = (clipped(competition(deltas, seen, p), least, most) - least) * (alive * factor)
    return weight, torch.sign(deltas) * clipped(deltas.abs(), low, high)
