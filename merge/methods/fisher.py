"""Fisher merging: average each entry by how much each model's predictions depend on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.ops import or_one
from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen, Sum


class Fisher(Params):
    """Average weighted by Fisher information."""

    weight: PerModel[Number] = Field(1.0, description="weight of each model")
    normalize: bool = Field(True, description="divide each model's weight by the norm of its Fisher")
    floor: float = Field(1e-6, ge=0, allow_inf_nan=False, description="least value of a Fisher entry")
    favor_target: bool = Field(True, description="floor the first model only, which then stays where nothing matters")

    def check(self, numbers: Mapping[str, tuple[float, ...]]) -> None:
        """Weights of an average by information are not negative, nor all zero."""
        if min(numbers["weight"]) < 0 or sum(numbers["weight"]) < 1e-8:
            raise ValueError("the weights must not be negative, nor sum to zero")


norm = Sum(
    "norm",
    lambda models, seen, p: seen.statistics.double() ** 2,
    lambda squares, p: squares.sqrt()[:, None],
    scope="model",
)


def mean(models: Tensor, seen: Seen, p: Resolved[Fisher]) -> Tensor:
    """What becomes of tensors that nothing was measured of: the weighted average."""
    return (p.weight * models).sum(0) / p.weight.sum(0)


@merge_method(
    "fisher",
    Fisher,
    base="unused",
    statistics="fisher",
    surveys=(norm,),
    symmetric=False,
    otherwise=mean,
    paper="arXiv:2111.09832",
)
def fisher(models: Tensor, seen: Seen, p: Resolved[Fisher]) -> Tensor:
    """Average of the models, weighted entry by entry by their diagonal Fisher information.

    x = sum_i l_i F_i x_i / sum_i l_i F_i, with l_i = weight_i / ||F_i|| (the norm over the whole model, before the
    floor) and F_1 = max(F_1, floor), or all F_i when `favor_target` is off. Where all l_i F_i are 0, the average.

    Paper: Matena and Raffel, Merging models with Fisher-weighted averaging, arXiv:2111.09832.
    """
    measured, scale = seen.statistics, p.weight  # (models, n), (models, 1)
    floored = measured.clamp_min(p.options.floor)
    information = torch.cat([floored[:1], measured[1:]]) if p.options.favor_target else floored
    if p.options.normalize:
        scale = scale / or_one(seen["norm"].to(scale.dtype))
    share = scale * information
    total = share.sum(0)
    return torch.where(total > 0, (share * models).sum(0) / or_one(total), mean(models, seen, p))
