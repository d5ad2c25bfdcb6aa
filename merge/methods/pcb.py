"""PCB-Merging: parameter competition balancing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.ops import or_one
from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import OrderStatistic, Seen, Survey

from . import pcb_equations as equations


class PCB(Params):
    """Parameter competition balancing."""

    ratio: float = Field(0.1, gt=0, le=1, description="share of entries that compete, those of the highest score")
    lambda_: PerModel[Number] = Field(1.0, alias="lambda", description="factor on each task vector")
    variant: Literal["reference", "nlp", "vision", "vision_es", "paper"] = Field(
        "reference", description="which of the authors' programs, or the equations of the paper"
    )


def clip_ranks(count: int, p: Resolved[PCB]) -> Sequence[Sequence[int]]:
    """The ranks magnitudes are clipped to; the upper one is the authors', one below the quantile."""
    share = 1e-4 if p.options.variant == "reference" else 1e-2
    return [[int(count * share), max(0, int(count * (1 - share) - 1))]] * len(p.values("lambda_"))


def cut_ranks(count: int, p: Resolved[PCB]) -> Sequence[Sequence[int]]:
    """The ranks scores are cut to: the threshold and the largest."""
    return [[min(count - 1, int(count * (1 - p.options.ratio))), count - 1]] * len(p.values("lambda_"))


def idle(clip: Tensor) -> Mapping[int, str]:
    """Models whose magnitudes are all equal: they cannot compete."""
    return {
        i: "its task vector is zero or constant: skipped" for i, (low, high) in enumerate(clip.tolist()) if low == high
    }


def competition(deltas: Tensor, seen: Seen, p: Resolved[PCB]) -> Tensor:
    """The score of each entry: exp(n u**2) times tanh of its agreement with the others; (models, n)."""
    low, high = seen["clip"][:, :1], seen["clip"][:, 1:]  # (models, 1)
    unit = (deltas.abs().clamp(low, high) - low) / or_one(high - low)
    alive = torch.sign(high - low)
    within = torch.exp(alive.sum() * unit * unit)
    if p.options.variant == "vision_es":
        signed = torch.sign(deltas) * unit * alive
        return within * sum(torch.tanh(signed * other) for other in signed)
    voice = torch.sign(deltas) * unit if p.options.variant == "vision" else deltas
    return within * torch.tanh(deltas * (voice * alive).sum(0))


clip = OrderStatistic("clip", lambda deltas, seen, p: deltas.abs(), clip_ranks, notes=idle)
cut = OrderStatistic("cut", competition, cut_ranks)


def surveys(options: PCB) -> Sequence[Survey]:
    """Two order statistics of magnitudes and two of scores, each over the whole model."""
    return [*equations.SURVEYS, equations.cut(cut_ranks)] if options.variant == "paper" else [clip, cut]


@merge_method("pcb", PCB, base="required", copies=False, surveys=surveys, zero="lambda", paper="arXiv:2410.02396")
def pcb(deltas: Tensor, seen: Seen, p: Resolved[PCB]) -> Tensor:
    """Balance parameters by competition: weigh each entry by how far its score lies above the cut.

    w_i = clip(b_i, t_i, M_i) - t_i over M_i - t_i;  d = sum_i w_i lambda_i c_i / sum_i w_i, with scores b_i, t_i and
    M_i their order statistics, and c_i the task vector with clipped magnitudes; all ranks over the whole model.
    reference is the repository's root program, nlp and vision those behind the tables, paper the equations.

    Paper: Du et al., Parameter competition balancing for model merging, arXiv:2410.02396.
    """
    if p.options.variant == "paper":
        weight, clipped = equations.weights(deltas, seen), deltas
    else:
        low, high = seen["clip"][:, :1], seen["clip"][:, 1:]
        least, most = seen["cut"][:, :1], seen["cut"][:, 1:]
        score = torch.minimum(torch.maximum(competition(deltas, seen, p), least), most)
        weight = torch.sign(high - low) * (score - least) / or_one(most - least)
        clipped = torch.sign(deltas) * deltas.abs().clamp(low, high)
    return (weight * p.lambda_ * clipped).sum(0) / weight.sum(0).clamp_min(1e-12)
