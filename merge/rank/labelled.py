"""Labels of data that a model's head knows nothing of: its features can be judged all the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.merge.pretrained.data import Rows
from paramsmith.merge.task import Batch, ModelTask, Task


def with_labels(
    task: Task,
    files: Sequence[str | Path],
    column: str = "label",
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
) -> Task:
    """The task with the labels of its files' column, whatever classes its own head has; as it is where it has labels.

    The different values are the classes, in alphabetical order; numbers that are not whole make a regression. `files`,
    `limit`, `shuffle` and `seed` are those of the task's data. InvalidInput for rows without a label.
    """
    first = next(iter(task.batches()), None)
    if first is None or "labels" in first:
        return task
    labels = _numbered([(row.where, row[column]) for row in Rows(files, limit=limit, shuffle=shuffle, seed=seed)])

    def batches() -> Iterator[Batch]:
        start = 0
        for batch in task.batches():
            tensor = next(iter(batch.values()))
            yield {**batch, "labels": labels[start : start + len(tensor)].to(tensor.device)}
            start += len(tensor)

    def outputs(model: torch.nn.Module, batch: Batch) -> Tensor:
        return task.outputs(model, {name: tensor for name, tensor in batch.items() if name != "labels"})

    return ModelTask(task.model, batches, outputs, task.likelihood, task.names)


def _numbered(values: Sequence[tuple[str, object]]) -> Tensor:
    if values and all(isinstance(v, int | float) and not isinstance(v, bool) for _, v in values):
        numbers = torch.tensor([float(str(v)) for _, v in values], dtype=torch.float64)
        if not bool((numbers == numbers.floor()).all()):
            return numbers
    for where, value in values:
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidInput(f"{where}: has no label", "give every row one, or leave it out")
    classes = {word: number for number, word in enumerate(sorted({str(value) for _, value in values}))}
    return torch.tensor([classes[str(value)] for _, value in values])
