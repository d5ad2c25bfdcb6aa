"""Which epoch's coefficients are kept: judged on validation tasks, more is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paramsmith.errors import InvalidInput
from paramsmith.merge.task import Task

from .objectives import score

KEPT = 0.95  # of the control's accuracy before any change


@dataclass(frozen=True)
class Judgement:
    """The score of each task; what the epoch is worth, None if it may not be chosen; whether to stop here."""

    scores: tuple[float, ...]
    value: float | None
    stop: bool = False


class Selection(Protocol):
    """A rule."""

    def judge(self, first: Sequence[float] | None) -> Judgement:
        """Judge the composed models; `first` are the scores before any change, None while these are found."""
        ...


class BestMean:
    """The best mean of the tasks' scores, each as a share of a reference: the fine-tuned model's."""

    def __init__(self, tasks: Sequence[Task], references: Sequence[float] | None = None) -> None:
        if references is not None and len(references) != len(tasks):
            raise InvalidInput(f"{len(references)} references for {len(tasks)} validation tasks", "give one a task")
        if references is not None and not all(reference > 0 for reference in references):
            raise InvalidInput("a reference is not above 0", "give the accuracies of the fine-tuned models")
        self._tasks, self._references = tasks, references or [1.0] * len(tasks)

    def judge(self, first: Sequence[float] | None) -> Judgement:
        """Judge the composed models."""
        scores = tuple(score(task) for task in self._tasks)
        shares = [one / reference for one, reference in zip(scores, self._references, strict=True)]
        return Judgement(scores, sum(shares) / len(shares))


class LowestTarget:
    """The lowest mean score of the targets while the control, the last task, keeps 0.95 of its first; then stop."""

    def __init__(self, targets: Sequence[Task], control: Task) -> None:
        self._targets, self._control = targets, control

    def judge(self, first: Sequence[float] | None) -> Judgement:
        """Judge the composed models."""
        targets = [score(task) for task in self._targets]
        control = score(self._control)
        kept = first is None or control >= KEPT * first[-1]
        value = -sum(targets) / len(targets) if kept else None
        return Judgement((*targets, control), value, stop=not kept)
