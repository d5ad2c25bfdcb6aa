"""RegMean: the weights whose outputs are closest to every model's own, on that model's inputs."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from paramsmith.gram import regmean_solve
from paramsmith.params import Number, Params, PerModel, Resolved
from paramsmith.registry import merge_method
from paramsmith.surveys import Seen


class RegMean(Params):
    """Regression mean of linear layers."""

    weight: PerModel[Number] = Field(1.0, description="weight of each model's inputs, and in the average of the rest")
    off_diagonal: float = Field(0.9, ge=0, le=1, description="factor on the entries of each Gram off its diagonal")

    def check(self, numbers: Mapping[str, tuple[float, ...]]) -> None:
        """The weights of a regression are not negative, nor all zero."""
        if min(numbers["weight"]) < 0 or sum(numbers["weight"]) < 1e-8:
            raise ValueError("the weights must not be negative, nor sum to zero")


def mean(models: Tensor, seen: Seen, p: Resolved[RegMean]) -> Tensor:
    """What becomes of biases, norms and embeddings: the weighted average, of task vectors given a base."""
    return (p.weight * models).sum(0) / p.weight.sum(0)


@merge_method(
    "regmean",
    RegMean,
    base="optional",
    statistics="gram",
    granularity="matrix",
    otherwise=mean,
    paper="arXiv:2212.09849",
)
def regmean(models: Tensor, seen: Seen, p: Resolved[RegMean]) -> Tensor:
    """Closed-form solution of the regression that asks one weight matrix to act as every model's on its own inputs.

    W = (sum_i W_i G_i)(sum_i G_i)^+, G_i the Gram matrix of model i's inputs with its off-diagonal scaled, times
    weight_i; as a change from the base, or from the average when there is none, which inputs that are always 0 keep.

    Paper: Jin et al., Dataless knowledge fusion by merging weights of language models, arXiv:2212.09849.
    """
    return regmean_solve(models, p.weight.view(-1, 1, 1) * seen.statistics, p.options.off_diagonal)
