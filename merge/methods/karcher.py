"""Karcher mean: the mean direction of any number of models on the sphere."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from paramsmith.gram import gram_matrix, karcher_coefficients, pair_products
from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen, Sum


class Karcher(Params):
    """Riemannian mean of directions."""

    weight: PerModel[Number] = Field(1.0, description="weight of each model")
    max_iter: int = Field(100, ge=1, le=10_000, description="most steps of the fixed-point iteration")
    tol: float = Field(1e-9, gt=0, description="stop when a step is shorter (radians)")

    def check(self, numbers: Mapping[str, tuple[float, ...]]) -> None:
        """A mean needs weights of one sign."""
        if min(numbers["weight"]) < 0 or sum(numbers["weight"]) < 1e-8:
            raise ValueError("the weights of a mean must not be negative, nor sum to zero")


mean = Sum(
    "mean",
    lambda models, seen, p: pair_products(models),
    lambda sums, p: karcher_coefficients(gram_matrix(sums), p.values("weight"), p.options.max_iter, p.options.tol),
)


@merge_method("karcher", Karcher, base="optional", surveys=(mean,))
def karcher(models: Tensor, seen: Seen, p: Resolved[Karcher]) -> Tensor:
    """Weighted Karcher mean of the tensors' directions, scaled by their mean norm; of task vectors given a base.

    The u that minimises sum_i w_i angle(u, x_i)**2, times sum_i w_i |x_i| / sum_i w_i.

    Source: Karcher, Riemannian center of mass and mollifier smoothing, 1977.
    """
    return (seen["mean"].to(models.dtype) * models).sum(0)
