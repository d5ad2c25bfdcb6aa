"""The loss of tasks through the networks that are generated for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Batch, Task
from paramsmith.hypernet.training.adaptation import Gathered
from paramsmith.hypernet.training.metabatch import MetaBatches
from paramsmith.hypernet.training.tasks import scalar
from paramsmith.params import Params
from paramsmith.parts import objectives
from paramsmith.userfile import call_user


class Tasks(Params):
    """Options of the objective `tasks`."""

    meta_batch: int = Field(8, ge=1, le=65_536, description="episodes a step; those of one target run side by side")
    norm_penalty: float = Field(0.0, ge=0, allow_inf_nan=False, description="factor on the norms of what is generated")
    vmap: bool = Field(True, description="run episodes of one target as one batch; else one after the other")


@objectives("tasks", Tasks)
class TasksObjective(MetaBatches):
    """The mean over a meta-batch of the task's loss, with the weights generated for each episode.

    L = mean over episodes of [loss(w, query) + norm_penalty * sum over tensors of |w_t|_F],   w = generated(condition)

    Episodes of one target, with batches of one shape, are generated and run at once, under `torch.vmap`; where nothing
    but the target is asked for, the weights are generated once for all of them. GHN-3 has a penalty of 3e-5.
    """

    name = "tasks"

    def __init__(self, options: Tasks, hypernetwork: Hypernetwork, source: object) -> None:
        super().__init__(options.meta_batch, hypernetwork, source)
        self.options = options

    def summed(self, group: Gathered, rng: torch.Generator) -> Tensor:
        """The losses and penalties of a group, summed over its episodes."""
        seeds = torch.randint(2**62, (group.count,), generator=rng).tolist()
        weights = self.hypernetwork(group.condition, group.target.spec, seeds)  # (B or 1, *shape) each
        losses = losses_of(self.task, group, weights, self.options.vmap).sum()
        if not self.options.norm_penalty:
            return losses
        norms = [w.reshape(len(w), -1).norm(dim=1).sum() * (group.count / len(w)) for w in weights.values()]
        return losses + self.options.norm_penalty * torch.stack(norms).sum()


def losses_of(task: Task, group: Gathered, weights: Mapping[str, Tensor], vmap: bool = True) -> Tensor:
    """The loss of each episode, (B), with weights (B, *shape), or (1, *shape) that all of them share."""

    def one(held: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return scalar(task.loss(partial(group.target.call, held), batch), "loss")

    own = {name for name, w in weights.items() if len(w) > 1}

    def of(i: int) -> dict[str, Tensor]:
        return {name: w[i if name in own else 0] for name, w in weights.items()}

    if vmap and group.count > 1:
        axes = {name: 0 if name in own else None for name in weights}
        mapped = torch.vmap(one, in_dims=(axes, 0), randomness="different")
        where = "the task's loss, run for several episodes by torch.vmap,"
        held = {name: w if name in own else w[0] for name, w in weights.items()}
        return cast(Tensor, call_user(mapped, where, held, dict(group.query)))
    rows = ({name: tensor[i] for name, tensor in group.query.items()} for i in range(group.count))
    found = [call_user(one, "the task's loss", of(i), batch) for i, batch in enumerate(rows)]
    return torch.stack(cast(list[Tensor], found))
