"""Objectives that are a mean over meta-batches of a task's episodes: what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.userfile import call_user

from .adaptation import Gathered, gather
from .tasks import is_task


class MetaBatches(ABC):
    """The mean over one meta-batch a step; it has one turn. A subclass gives the sum over episodes of one target.

    `name` is that of the objective, for messages. InvalidInput for a source that is no task.
    """

    name: ClassVar[str]

    def __init__(self, meta_batch: int, hypernetwork: Hypernetwork, source: object) -> None:
        if not is_task(source):
            raise InvalidInput(f"the objective {self.name!r} learns from tasks", "give --tasks file.py:function")
        self.meta_batch, self.hypernetwork, self.task = meta_batch, hypernetwork, source

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """One turn."""
        return {"weights": self.hypernetwork.parameters()}

    def turn(self, step: int) -> str:
        """Always the same."""
        return "weights"

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The mean over one meta-batch."""
        device = next(self.hypernetwork.parameters()).device
        groups = cast(list[Gathered], call_user(gather, "the task", self.task, rng, self.meta_batch))
        return torch.stack([self.summed(group.to(device), rng) for group in groups]).sum() / self.meta_batch

    @abstractmethod
    def summed(self, group: Gathered, rng: torch.Generator) -> Tensor:
        """The loss of each episode of a group, which share a target, summed."""
