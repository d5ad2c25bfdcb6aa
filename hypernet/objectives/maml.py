"""MAML: weights from which a few steps of gradient descent do well, with its first-order forms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Batch
from paramsmith.hypernet.training.adaptation import Gathered, adapt, held_out, loss_of, side_by_side
from paramsmith.hypernet.training.metabatch import MetaBatches
from paramsmith.params import Params
from paramsmith.parts import objectives


class MAML(Params):
    """Options of the objective `maml`."""

    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="step size of the descent inside a task")
    steps: int = Field(2, ge=1, le=10_000, description="steps of that descent")
    meta_batch: int = Field(4, ge=1, le=65_536, description="episodes a meta-step, side by side")
    first_order: bool = Field(False, description="leave out second derivatives: FOMAML")
    tail: int = Field(0, ge=0, description="judge by so many examples held out of the support, instead of the query")


@objectives("maml", MAML, paper="arXiv:1703.03400")
class MAMLObjective(MetaBatches):
    """The mean, over a meta-batch of tasks, of the loss after adapting to each.

    L(theta) = mean over tasks of query(theta_k), theta_{j+1} = theta_j - lr * d support(theta_j) / d theta_j

    Its gradient goes through all k steps. With `first_order` (FOMAML) it is the mean gradient of the query's loss at
    theta_k; with `tail` as well, the query is a part of the support that the steps before never saw, so that the
    gradient is that of one more step, on held-out examples (arXiv:1912.06290).
    """

    name = "maml"

    def __init__(self, options: MAML, hypernetwork: Hypernetwork, source: object) -> None:
        super().__init__(options.meta_batch, hypernetwork, source)
        self.options = options

    def summed(self, group: Gathered, rng: torch.Generator) -> Tensor:
        """The losses of a group, summed."""
        options, target = self.options, group.target
        support, query = held_out(group, options.tail)

        def judged(weights: Mapping[str, Tensor], seen: Batch, unseen: Batch) -> Tensor:
            run_loss = loss_of(self.task.loss, target, seen)
            adapted = adapt(run_loss, weights, options.lr, options.steps, options.first_order)
            return loss_of(self.task.loss, target, unseen)(adapted)

        weights = self.hypernetwork(group.condition, target.spec)
        return side_by_side(judged, weights, support, query).sum()
