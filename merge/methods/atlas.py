"""aTLAS with partitions: task arithmetic with a coefficient for every share of every tensor, drawn at random."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from paramsmith.ops import partition
from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen


class Atlas(Params):
    """Learned scaling of task vectors."""

    weight: PerModel[Number] = Field(1.0, description="factor on each task vector; learned ones come in a file")
    partitions: int = Field(1, ge=1, le=1 << 20, description="shares of a tensor that have a factor of their own")


@merge_method(
    "atlas", Atlas, base="required", random=True, symmetric=False, copies=False, zero="weight", paper="arXiv:2407.02880"
)
def atlas(deltas: Tensor, seen: Seen, p: Resolved[Atlas]) -> Tensor:
    """Sum of the task vectors, each entry times the factor of its model, tensor and partition.

    d = sum_i w_i[k] d_i, k the entry's partition: floor(K u) with u in [0, 1) random, the same for all models. Factors
    are learned with `paramsmith learn atlas` and given with --coefficients; seed and partitions are the file's.

    Paper: Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, arXiv:2407.02880.
    """
    count = p.options.partitions
    factors = p.weight.view(len(deltas), -1)  # (models, partitions), or one for all
    if count == 1 or factors.shape[1] == 1:
        return (factors[:, :1] * deltas).sum(0)
    return (factors[:, partition(seen.uniform()[0], count)] * deltas).sum(0)
