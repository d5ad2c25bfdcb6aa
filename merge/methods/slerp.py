"""SLERP: interpolate two models along the arc between them."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from paramsmith.gram import gram_matrix, pair_products, slerp_coefficients
from paramsmith.params import Number, Params, PerTensor, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen, Sum


class Slerp(Params):
    """Spherical interpolation of two models."""

    t: PerTensor[Number] = Field(0.5, description="place on the arc: 0 the first model, 1 the second")


arc = Sum(
    "arc",
    lambda pair, seen, p: pair_products(pair),
    lambda sums, p: slerp_coefficients(gram_matrix(sums), p.values("t")[0]),
)


@merge_method("slerp", Slerp, base="optional", models=(2, 2), surveys=(arc,), symmetric=False)
def slerp(pair: Tensor, seen: Seen, p: Resolved[Slerp]) -> Tensor:
    """Spherical interpolation, tensor by tensor; of the task vectors when a base is given.

    x = sin((1-t)W)/sin W x_0 + sin(tW)/sin W x_1, W the angle between the tensors; linear where |cos W| > 0.9995.
    Two fine-tunes of one model are that close as whole weights: give the base to interpolate what they learned.

    Source: Shoemake, Animating rotation with quaternion curves, 1985.
    """
    return (seen["arc"].to(pair.dtype) * pair).sum(0)
