"""A task's batches, step after step, and what a task's own code puts out, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.task import IGNORED, Batch, DataDigest, Task, checked_batches, code_digest
from paramsmith.userfile import call_user


@dataclass(frozen=True)
class Data:
    """What one look through a task's data tells."""

    batches: int
    examples: int
    labels: int  # that count; as many as examples where there are none
    digest: str
    code: str  # a digest of the task's
    classes: int | None  # different labels, 2 for more; where there is one an example


def look_through(task: Task, limit: int | None = None) -> Data:
    """Read a task's data once, all or `limit` examples. InvalidInput when it is empty or its batches are no batches."""
    digest, seen = DataDigest(), set[float]()
    batches = examples = counted = 0
    single = True
    for batch in batches_of(task, limit):
        digest.add(batch)
        size, labels = len(next(iter(batch.values()))), batch.get("labels")
        single = single and labels is not None and labels.ndim == 1
        if single and labels is not None and len(seen) < 2:
            seen |= set(labels[labels != IGNORED].tolist())
        plain = labels is None or task.likelihood == "regression"
        batches, examples = batches + 1, examples + size
        counted += size if labels is None or plain else int((labels != IGNORED).sum())
    return Data(
        batches, examples, counted, digest.hexdigest(), code_digest(task), min(2, len(seen)) if single else None
    )


def check_classes(looked: Sequence[Data], tasks: Sequence[Task]) -> None:
    """InvalidInput when no label of a task counts, or all examples of a classification task have one."""
    for number, (data, task) in enumerate(zip(looked, tasks, strict=True)):
        if not data.labels:
            raise InvalidInput(f"no label of task {number + 1} counts", f"all of them are {IGNORED}")
        if data.classes == 1 and task.likelihood == "categorical":
            fact = f"all {data.examples:,} examples of task {number + 1} have the same label"
            raise InvalidInput(fact, "there is nothing to tell apart: give examples of two classes or more")


def batches_of(task: Task, limit: int | None = None) -> Iterator[Batch]:
    """The checked batches; Failed when the task's own code raises."""
    iterator = checked_batches(task, limit)
    while True:
        batch = call_user(next, "the task's data", iterator, None)
        if batch is None:
            return
        yield batch  # type: ignore[misc]


def on_device(task: Task, batch: Batch) -> dict[str, Tensor]:
    """The batch where the task's model is."""
    device = next((p.device for p in task.model.parameters()), torch.device("cpu"))
    return {name: tensor.to(device) for name, tensor in batch.items()}


def outputs_of(task: Task, batch: Batch) -> Tensor:
    """What the task puts out for a batch, which is moved to its device. Failed or InvalidInput names what is wrong."""
    outputs = call_user(task.outputs, "the task's outputs", task.model, batch)
    if not isinstance(outputs, Tensor) or not outputs.dtype.is_floating_point or outputs.ndim < 2:
        told = f"{type(outputs).__name__} {list(outputs.shape) if isinstance(outputs, Tensor) else ''}".strip()
        hint = "logits (examples, classes) or (examples, positions, classes), or predictions (examples, values)"
        raise InvalidInput(f"the task's outputs are {told}", hint)
    return outputs


def check_finite(loss: Tensor, where: str) -> float:
    """The loss as a number; Failed when it is none."""
    value = float(loss.detach())
    if value != value or abs(value) == float("inf"):
        raise Failed(f"the loss is {value} {where}", "look at the data and the models, or lower the learning rate")
    return value


class Feed:
    """A task's batches in their order, again and again: the one of each step, whatever step comes first."""

    def __init__(self, task: Task, batches: int) -> None:
        self.task, self.batches = task, batches
        self._iterator: Iterator[Batch] = iter(())
        self._next = -1

    def at(self, step: int) -> dict[str, Tensor]:
        """The batch of a step, on the model's device."""
        wanted = step % self.batches
        if wanted < self._next or self._next < 0:
            self._iterator, self._next = batches_of(self.task), 0
        for batch in self._iterator:
            self._next += 1
            if self._next == wanted + 1:
                return on_device(self.task, batch)
        raise Failed("the task's data has become shorter", "`batches` gives the same batches at every call")
