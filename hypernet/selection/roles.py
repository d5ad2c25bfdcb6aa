"""The three roles of data: what is asked with, what is selected by, what is reported on; a selector is given two.

Rows that are selected by and rows that are reported on are never the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Batch, Condition, Episode, Target, Task
from paramsmith.hypernet.training.tasks import scalar
from paramsmith.userfile import call_user

Weights: TypeAlias = Mapping[str, Tensor]  # tensors (*shape) by slot
Score: TypeAlias = Callable[[Weights, Batch], float]  # higher is better


@dataclass(frozen=True, slots=True)
class Shown:
    """What a selector is given: no way leads from here to what is reported on."""

    condition: Condition
    selection: Batch


@dataclass(frozen=True)
class Data:
    """The data of one task by role. Every tensor of `selection` and `report` has a row an example.

    InvalidInput where there is nothing to select by or to report on, or where a row is in both.
    """

    condition: Condition
    selection: Batch
    report: Batch

    def __post_init__(self) -> None:
        """Hold the roles against each other."""
        chosen, reported = _rows(self.selection, "selection"), _rows(self.report, "report")
        shared = len(chosen & reported)
        if shared:
            fact = f"{shared:,} of the rows that are reported on are also selected by"
            raise InvalidInput(fact, "split the data before anything is chosen by it")

    @classmethod
    def of_episode(cls, episode: Episode) -> Data:
        """Selected by the support, reported on the query."""
        return cls(episode.condition, episode.support, episode.query)

    def shown(self) -> Shown:
        """The part that a selector may see."""
        return Shown(self.condition, self.selection)


def score_of(task: Task, target: Target) -> Score:
    """The score of a task, for weights of a target. Failed where the task's code raises."""

    @torch.no_grad()
    def score(weights: Weights, batch: Batch) -> float:
        run = partial(target.call, weights)
        return float(scalar(call_user(task.score, "the task's score", run, batch), "score"))

    return score


def _rows(batch: Batch, role: str) -> set[bytes]:
    """The bytes of each row, of all tensors together."""
    counts = {len(tensor) if tensor.dim() else 0 for tensor in batch.values()}
    if len(counts) != 1 or 0 in counts:
        fact = f"the data for {role} has {' and '.join(map(str, sorted(counts))) or 'no'} rows"
        raise InvalidInput(fact, "give each tensor a row an example, and at least one")
    count = counts.pop()
    parts = [batch[name].detach().cpu().contiguous().reshape(count, -1) for name in sorted(batch)]
    held = torch.cat([part.view(torch.uint8).reshape(count, -1) for part in parts if part.numel()], 1)
    return {row.tobytes() for row in held.numpy()}
