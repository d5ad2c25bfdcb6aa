"""DARE: drop entries at random, rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.ops import Majority, elected_sum, keep, or_one, weighted_sum
from paramsmith.params import Number, Params, PerModel, PerTensor, Resolved, Share
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen, Sum, Survey


class Dare(Params):
    """Drop and rescale."""

    weight: PerModel[Number] = Field(1.0, description="weight of each task vector")
    density: PerModel[Share] = Field(0.5, description="chance of an entry to be kept")
    lambda_: PerTensor[Number] = Field(1.0, alias="lambda", description="factor on the merged update")
    rescale: Literal["paper", "l1", "none"] = Field("paper", description="by 1/density, to the old L1 norm, or not")
    elect: bool = Field(False, description="elect signs as TIES does")
    normalize: bool = Field(False, description="divide by the weights, with election by those agreeing")
    majority_sign_method: Majority = Field("total", description="elect by the sum of the entries or of their signs")
    flavour: Literal["native", "mergekit", "peft"] = Field("native", description="whose election; see ties")


def dropped(deltas: Tensor, seen: Seen, p: Resolved[Dare]) -> Tensor:
    """The entries that chance keeps, 0 elsewhere: (models, n)."""
    return keep(seen.uniform() < p.density, deltas)


def surveys(options: Dare) -> Sequence[Survey]:
    """For rescale l1: the factor (models, 1) that restores each tensor's L1 norm."""
    return [Sum("restore", _norms, _ratio)] if options.rescale == "l1" else []


def _norms(deltas: Tensor, seen: Seen, p: Resolved[Dare]) -> Tensor:
    return torch.cat([deltas, dropped(deltas, seen, p)]).abs()


def _ratio(norms: Tensor, p: Resolved[Dare]) -> Tensor:
    before, after = norms.view(2, -1, 1)
    return torch.where(torch.minimum(before, after) > 1e-7, before / or_one(after), 1.0)


@merge_method(
    "dare",
    Dare,
    base="required",
    surveys=surveys,
    random=True,
    symmetric=False,
    copies=False,
    zero="lambda",
    paper="arXiv:2311.03099",
)
def dare(deltas: Tensor, seen: Seen, p: Resolved[Dare]) -> Tensor:
    """Keep each entry of each task vector with probability density, rescale, and sum, times lambda.

    d = lambda sum_i w_i s_i m_i d_i with m_i ~ Bernoulli(density) and s_i = 1/density (`paper`), the factor that gives
    the tensor its L1 norm back (`l1`, as mergekit does), or 1. The masks depend on (seed, tensor, model, element) only.

    Paper: Yu et al., Language models are super Mario, arXiv:2311.03099.
    """
    kept = dropped(deltas, seen, p)
    if p.options.rescale != "none":
        kept = kept / p.density if p.options.rescale == "paper" else kept * seen["restore"].to(kept.dtype)
    if p.options.elect:
        rule, majority = p.options.flavour, p.options.majority_sign_method
        return p.lambda_ * elected_sum(kept, p.weight, rule, p.options.normalize, majority)
    return p.lambda_ * weighted_sum(kept, p.weight, p.options.normalize)
