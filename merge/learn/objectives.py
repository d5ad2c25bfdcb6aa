"""What learners of coefficients minimise: one loss a task and step, differentiable in the models' parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.merge.task import IGNORED, Batch, Task, check_labels, example_losses

from .feeds import Data, Feed, batches_of, on_device, outputs_of

Name: TypeAlias = Literal["supervised", "negation", "entropy", "ufm"]
RELIABLE = 0.4  # of the largest entropy, ln C: SAR's bound


class Objective(Protocol):
    """Losses of a step, and what a resumed run must know of them."""

    def begin(self, step: int) -> None:
        """Prepare for the epoch that begins with this step; the models are composed."""
        ...

    def losses(self, step: int) -> Iterator[Tensor]:
        """One scalar a task, to be differentiated before the next is asked for."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What `begin` found."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        ...


class Batchwise:
    """Σ_t s_t ℓ(outputs of task t, its batch): supervised, negation (s = -1 for the targets), entropy."""

    def __init__(
        self,
        tasks: Sequence[Task],
        looked: Sequence[Data],
        loss: Callable[[Tensor, Batch, Task], Tensor],
        signs: Sequence[int] | None = None,
    ) -> None:
        self._feeds = [Feed(task, data.batches) for task, data in zip(tasks, looked, strict=True)]
        self._signs = signs or [1] * len(tasks)
        self._loss = loss

    def begin(self, step: int) -> None:
        """Nothing to prepare."""

    def losses(self, step: int) -> Iterator[Tensor]:
        """One scalar a task."""
        for feed, sign in zip(self._feeds, self._signs, strict=True):
            batch = feed.at(step)
            yield sign * self._loss(outputs_of(feed.task, batch), batch, feed.task)

    def state(self) -> dict[str, Tensor]:
        """Nothing to know."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""


def supervised(outputs: Tensor, batch: Batch, task: Task) -> Tensor:
    """Mean negative log-likelihood, over the labels that count or, for regression, over the examples."""
    losses = example_losses(outputs, batch, task.likelihood)
    counted = len(losses) if task.likelihood == "regression" else int((batch["labels"] != IGNORED).sum())
    return losses.sum() / max(1, counted)


def entropy(outputs: Tensor, margin: float | None = None) -> Tensor:
    """Mean entropy H = -Σ_c p_c ln p_c of the predictions; with a margin of those with H < margin ln C only.

    (..., classes) -> (); 0, without slope, where none is reliable.

    >>> round(float(entropy(torch.zeros(5, 2))), 4), float(entropy(torch.zeros(5, 2), 0.4))
    (0.6931, 0.0)

    Paper: Niu et al., Towards stable test-time adaptation in dynamic wild world, arXiv:2302.12400.
    """
    logs = outputs.float().flatten(0, -2).log_softmax(-1)
    found = -(logs.exp() * logs).sum(-1)
    if margin is None:
        return found.mean()
    reliable = found.detach() < margin * math.log(outputs.shape[-1])
    return torch.where(reliable, found, 0.0).sum() / reliable.sum().clamp_min(1)


def check_categorical(tasks: Sequence[Task], name: str) -> None:
    """InvalidInput for regression, whose predictions have no entropy."""
    if any(task.likelihood != "categorical" for task in tasks):
        raise InvalidInput(f"{name} is of classes, and a task is regression", "give tasks that classify")


@torch.no_grad()
def accuracy(task: Task, outputs: Callable[[Batch], Tensor] | None = None) -> float:
    """The share of labels that have the largest logit, -100 apart, or NaN where a logit is NaN.

    The model is in eval mode meanwhile.

    `outputs` stands in for what the task puts out for a batch on its device, as `linearised` gives it.
    """
    check_categorical([task], "accuracy")
    right = counted = 0
    for batch, found in _predictions(task, outputs):
        labels = _labels(batch)
        check_labels(labels, found.shape[-1])
        if labels.shape != found.shape[:-1]:
            fact = f"the labels are {list(labels.shape)}, but the task's outputs are {list(found.shape)}"
            raise InvalidInput(fact, "give a row of logits for each label")
        if bool(found.isnan().any()):
            return math.nan
        known = labels != IGNORED
        right += int(((found.argmax(-1) == labels) & known).sum())
        counted += int(known.sum())
    if not counted:
        raise InvalidInput("no example has a label", "accuracy needs labels other than -100")
    return right / counted


@torch.no_grad()
def score(task: Task) -> float:
    """What a task is judged by, more is better: its accuracy or, for regression, minus its mean loss."""
    if task.likelihood == "categorical":
        return accuracy(task)
    total = examples = 0.0
    for batch, found in _predictions(task, None):
        losses = example_losses(found, batch, task.likelihood)
        total, examples = total + float(losses.sum()), examples + len(losses)
    return -total / examples


def _labels(batch: Batch) -> Tensor:
    labels = batch.get("labels")
    if labels is None:
        raise InvalidInput("the data has no labels", "give the batches a tensor called labels")
    return labels


def _predictions(task: Task, outputs: Callable[[Batch], Tensor] | None) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    modes = [(module, module.training) for module in task.model.modules()]
    task.model.eval()
    try:
        for batch in batches_of(task):
            moved = on_device(task, batch)
            yield moved, (outputs(moved) if outputs else outputs_of(task, moved))
    finally:
        for module, training in modes:
            module.training = training
