"""Reptile: weights near those that every task leads to; no second derivatives, no query."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Batch
from paramsmith.hypernet.training.adaptation import Gathered, Weights, adapt, held_out, loss_of, side_by_side
from paramsmith.hypernet.training.metabatch import MetaBatches
from paramsmith.params import Params
from paramsmith.parts import objectives


class Reptile(Params):
    """Options of the objective `reptile`."""

    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="step size of the descent inside a task")
    steps: int = Field(10, ge=1, le=10_000, description="steps of that descent")
    meta_batch: int = Field(4, ge=1, le=65_536, description="episodes a meta-step, side by side")


@objectives("reptile", Reptile, paper="arXiv:1803.02999")
class ReptileObjective(MetaBatches):
    """Half the mean squared distance to the weights that the tasks adapt to, which are held constant.

    L(theta) = 1/2 mean over tasks of |theta - theta_k|^2, so dL/dtheta = theta - mean of theta_k: Reptile's direction,
    for whichever optimiser follows it.
    """

    name = "reptile"

    def __init__(self, options: Reptile, hypernetwork: Hypernetwork, source: object) -> None:
        super().__init__(options.meta_batch, hypernetwork, source)
        self.options = options

    def summed(self, group: Gathered, rng: torch.Generator) -> Tensor:
        """The losses of a group, summed."""
        options, target = self.options, group.target
        support, _ = held_out(group, 0)

        def adapted(weights: Mapping[str, Tensor], seen: Batch, _: Batch) -> Weights:
            return adapt(loss_of(self.task.loss, target, seen), weights, options.lr, options.steps, first_order=True)

        weights = self.hypernetwork(group.condition, target.spec)
        with torch.no_grad():
            there = side_by_side(adapted, weights, support, group.query)
        return torch.stack([(weights[name] - there[name]).square().sum() for name in weights]).sum() / 2
