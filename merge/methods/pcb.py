"""PCB-Merging: parameter competition balancing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import OrderStatistic, Seen, Survey

from . import pcb_equations as equations
from . import pcb_programs as programs


class PCB(Params):
    """Parameter competition balancing."""

    ratio: float = Field(0.1, gt=0, le=1, description="share of entries that compete, those of the highest score")
    lambda_: PerModel[Number] = Field(1.0, alias="lambda", description="factor on each task vector")
    variant: Literal["reference", "nlp", "vision", "vision_es", "paper"] = Field(
        "reference", description="which of the authors' programs, or the equations of the paper"
    )


def cut_ranks(count: int, p: Resolved[PCB]) -> Sequence[Sequence[int]]:
    """The ranks scores are cut to: the threshold and the largest."""
    return [[min(count - 1, int(count * (1 - p.options.ratio))), count - 1]] * p.models


def surveys(options: PCB) -> Sequence[Survey]:
    """Two order statistics of magnitudes and two of scores, each over the whole model."""
    if options.variant == "paper":
        return [*equations.SURVEYS, equations.cut(cut_ranks)]
    return [
        programs.clip,
        OrderStatistic("cut", programs.competition, cut_ranks, then=programs.gain, notes=programs.undecided),
    ]


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
        weight, clipped = programs.weights(deltas, seen, p)
    return (weight * p.lambda_ * clipped).sum(0) / weight.sum(0).clamp_min(1e-12)
