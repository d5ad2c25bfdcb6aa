"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.ops import Majority, elected_sum, keep, or_one, trim, votes
from paramsmith.params import Number, Params, PerModel, PerTensor, Resolved, Share
from paramsmith.registry import merge_method
from paramsmith.surveys import OrderStatistic, Seen, Sum, Survey


class Ties(Params):
    """Trim, elect sign, merge."""

    weight: PerModel[Number] = Field(1.0, description="weight of each task vector")
    density: PerModel[Share] = Field(0.2, description="share of entries kept, those of largest magnitude")
    lambda_: PerTensor[Number] = Field(1.0, alias="lambda", description="factor on the merged update")
    normalize: bool = Field(True, description="divide by what agrees: a mean, not a sum")
    largest: bool = Field(False, description="paper: take the largest of the agreeing entries instead of their mean")
    majority_sign_method: Majority = Field("total", description="elect by the sum of the entries or of their signs")
    flavour: Literal["native", "paper", "mergekit", "peft"] = Field("native", description="whose TIES; see the text")


def kept_ranks(count: int, p: Resolved[Ties]) -> Sequence[Sequence[int]]:
    """The rank of the smallest magnitude kept, a model: exactly int(density n) entries (the authors keep one more)."""
    extra = 1 if p.options.flavour == "paper" else 0
    return [[count - min(count, max(1, int(density * count) + extra))] for density in p.values("density")]


def surveys(options: Ties) -> Sequence[Survey]:
    """The magnitude that trims each model; for the authors' rule also the sign of the majority."""
    scope: Literal["model", "tensor"] = "model" if options.flavour in ("native", "paper") else "tensor"
    threshold = OrderStatistic("threshold", lambda deltas, seen, p: deltas.abs(), kept_ranks, scope)
    majority = Sum("majority", _signs, lambda total, p: torch.sign(total), scope="model")
    return [threshold, majority] if options.flavour == "paper" else [threshold]


def _signs(deltas: Tensor, seen: Seen, p: Resolved[Ties]) -> Tensor:
    return torch.sign(votes(trim(deltas, seen["threshold"]), p.options.majority_sign_method))[None]


@merge_method("ties", Ties, base="required", copies=False, surveys=surveys, zero="lambda", paper="arXiv:2306.01708")
def ties(deltas: Tensor, seen: Seen, p: Resolved[Ties]) -> Tensor:
    """Trim each task vector, elect a sign for each element, merge the entries that agree, times lambda.

    native trims over the whole model, elects by the unweighted sum (a sum of 0 elects nothing) and takes the weighted
    mean of what agrees. paper is the authors' code: a sum of 0 takes the majority sign of the model, weights are not
    used. mergekit trims each tensor and weights before the election. peft trims each tensor and divides by the count.
    Entries as large as the smallest kept one are all kept.

    Paper: Yadav et al., TIES-Merging, arXiv:2306.01708.
    """
    kept = trim(deltas, seen["threshold"])  # (models, n)
    flavour, majority = p.options.flavour, p.options.majority_sign_method
    if flavour != "paper":
        return p.lambda_ * elected_sum(kept, p.weight, flavour, p.options.normalize, majority)
    sign = torch.sign(votes(kept, majority))
    sign = torch.where(sign == 0, seen["majority"].to(sign.dtype), sign)
    # as the authors have it: where even the majority is 0, the negative entries agree
    agreeing = keep(torch.where(sign > 0, kept, -kept) > 0, kept)
    if p.options.largest:
        return p.lambda_ * agreeing.abs().amax(0) * sign
    count = or_one(keep(agreeing != 0, torch.ones_like(agreeing)).sum(0))
    return p.lambda_ * agreeing.sum(0) / (count if p.options.normalize else 1)
