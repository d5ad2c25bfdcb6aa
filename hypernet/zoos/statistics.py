"""Running statistics of networks that were trained without any: batch norms that are trained use those of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.finishing.recalibration import Inputs, recalibrate, running_statistics
from paramsmith.hypernet.protocols import Batch, Target, Task
from paramsmith.hypernet.targets import calling
from paramsmith.hypernet.targets.statistics import is_statistic
from paramsmith.userfile import call_user

_ROWS = 1024  # of its data that a network's statistics are measured on


@torch.no_grad()
def statistics_of(
    task: Task, target: Target, weights: Mapping[str, Tensor], supports: Sequence[Batch]
) -> dict[str, Tensor]:
    """Means and variances (B, *shape) by name, each network's over the first rows that it was trained on.

    None for a target without such norms, or in inference, where norms use what they have. The task's loss is asked
    what it puts in.
    """
    if not isinstance(target, calling.Target) or not target.given.training or not running_statistics(target.given):
        return {}
    found: dict[str, list[Tensor]] = {}
    for i, support in enumerate(supports):
        own = {name: weight[i] for name, weight in weights.items()}
        device = next(iter(own.values())).device
        batch = {name: rows[:_ROWS].to(device) for name, rows in support.items()}
        made, _ = recalibrate(target.given, _inputs(task, target, own, batch))(own)
        for name, values in made.items():
            if is_statistic(name):
                found.setdefault(name, []).append(values)
    return {name: torch.stack(values) for name, values in found.items()}


def _inputs(task: Task, target: Target, weights: Mapping[str, Tensor], batch: Batch) -> list[Inputs]:
    """What the task's loss puts into a target, each time that it runs it."""
    seen: list[Inputs] = []

    def run(*inputs: Tensor, **named: Tensor) -> Tensor:
        if inputs and named:
            fact = "the task runs its target with inputs by place and by name, and its norms cannot be measured"
            raise InvalidInput(fact, "give all inputs in one of the two ways")
        seen.append(named or inputs)
        return target.call(weights, *inputs, **named)

    call_user(task.loss, "the task's loss", run, batch)
    return seen
