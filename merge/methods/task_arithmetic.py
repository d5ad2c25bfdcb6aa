"""Task arithmetic: add and subtract what fine-tuning changed."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from paramsmith.ops import weighted_sum
from paramsmith.params import Number, Params, PerModel, PerTensor, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen


class TaskArithmetic(Params):
    """Sum of task vectors."""

    weight: PerModel[Number] = Field(1.0, description="weight of each task vector; negative to forget")
    lambda_: PerTensor[Number] = Field(1.0, alias="lambda", description="factor on the merged update")
    normalize: bool = Field(False, description="divide by the sum of the weights")


@merge_method("task_arithmetic", TaskArithmetic, base="required", copies=False, zero="lambda", paper="arXiv:2212.04089")
def task_arithmetic(deltas: Tensor, seen: Seen, p: Resolved[TaskArithmetic]) -> Tensor:
    """Weighted sum of the task vectors, times lambda.

    d = lambda sum_i w_i d_i, with d_i = x_i - x_0.

    >>> import torch
    >>> p = Resolved(TaskArithmetic(), {"weight": torch.tensor([[1.0], [0.5]]), "lambda_": torch.tensor([2.0])}, {})
    >>> task_arithmetic(torch.tensor([[1.0], [2.0]]), Seen({}), p).tolist()
    [4.0]

    Paper: Ilharco et al., Editing models with task arithmetic, arXiv:2212.04089.
    """
    return p.lambda_ * weighted_sum(deltas, p.weight, p.options.normalize)
