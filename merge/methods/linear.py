"""Weighted average of models: the model soup."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen


class Linear(Params):
    """Weighted average."""

    weight: PerModel[Number] = Field(1.0, description="weight of each model")
    normalize: bool = Field(True, description="divide by the sum of the weights")

    def check(self, numbers: Mapping[str, tuple[float, ...]]) -> None:
        """The weights of a normalized average must not cancel."""
        if self.normalize and abs(sum(numbers["weight"])) < 1e-8:
            raise ValueError("the weights sum to zero; change them, or set normalize to false")


@merge_method("linear", Linear, base="unused", paper="arXiv:2203.05482")
def linear(models: Tensor, seen: Seen, p: Resolved[Linear]) -> Tensor:
    """Weighted average of the models.

    x = sum_i w_i x_i / sum_i w_i, without the divisor when `normalize` is off.

    >>> import torch
    >>> p = Resolved(Linear(), {"weight": torch.tensor([[1.0], [3.0]])}, {})
    >>> linear(torch.tensor([[0.0, 4.0], [4.0, 8.0]]), Seen({}), p).tolist()
    [3.0, 7.0]

    Paper: Wortsman et al., Model soups, arXiv:2203.05482.
    """
    total = (p.weight * models).sum(0)  # (n)
    return total / p.weight.sum(0) if p.options.normalize else total
