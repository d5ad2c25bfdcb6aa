"""What measuring and learning need to know of a model's task: the model, its data, and what it puts out.

A task is any object with these members. In a file of your own (`--task file.py:make_task`):

    def make_task(checkpoint: str) -> Task:                      # or a list of tasks that share the weights
        model = Net(); load(model, checkpoint)
        return ModelTask(model, data=lambda: batches, forward=lambda model, batch: model(batch["x"]))

A batch is a mapping of tensors whose first dimension is the examples. `labels` in it are integers (examples,) or
(examples, positions), -100 where nothing is to be predicted; for regression floats (examples, values). The names of
the model's parameters are those of the checkpoint's tensors, or `names` maps them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import InvalidInput, printable
from paramsmith.memory import as_bytes
from paramsmith.statistics import Readable
from paramsmith.userfile import call_user, named_function

Batch: TypeAlias = Mapping[str, Tensor]
Likelihood: TypeAlias = Literal["categorical", "regression"]
IGNORED = -100
_MEMBERS = ("model", "likelihood", "names", "batches", "outputs")


@runtime_checkable
class Task(Protocol):
    """A model and data. `outputs` are logits (examples, classes) or (examples, positions, classes), or predictions."""

    @property
    def model(self) -> nn.Module:
        """The network, on the device to work on; used in eval mode, its weights may be changed by learners."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """categorical: logits; regression: the mean of a unit-variance normal distribution."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """{parameter of the model: tensor of the checkpoint}, where they differ."""
        ...

    def batches(self) -> Iterable[Batch]:
        """The data, the same batches in the same order at every call."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `model`, this task's or one with other weights, puts out; must call `model` itself."""
        ...


@dataclass(frozen=True)
class ModelTask:
    """A Task from its parts."""

    model: nn.Module
    data: Callable[[], Iterable[Batch]]
    forward: Callable[[nn.Module, Batch], Tensor]
    likelihood: Likelihood = "categorical"
    names: Mapping[str, str] = field(default_factory=dict)

    def batches(self) -> Iterable[Batch]:
        """The data from its beginning."""
        return self.data()

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model puts out."""
        return self.forward(model, batch)


class Whole(nn.Module):
    """A task's outputs as a module, so that torch.func can call it with other weights: names begin with `model.`"""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._outputs = task.outputs

    def forward(self, batch: Batch) -> Tensor:
        """The task's outputs."""
        return self._outputs(self.model, batch)


def load_tasks(reference: str, checkpoint: str) -> list[Task]:
    """The tasks that `file.py:function` makes of a checkpoint. InvalidInput or Failed says what went wrong there."""
    made = call_user(named_function(reference, "task"), reference.rpartition(":")[0], checkpoint)
    listed: Sequence[object] = made if isinstance(made, Sequence) else [made]
    tasks: list[Task] = []
    for found in listed:
        lacking = next((member for member in _MEMBERS if not call_user(hasattr, reference, found, member)), None)
        if lacking is not None:
            fact = f"{printable(reference)} gave {type(found).__name__}, which has no {lacking}"
            raise InvalidInput(fact, "give a paramsmith.merge.task.ModelTask, or a list of them")
        task = cast(Task, found)
        _check_members(task, reference)
        tasks.append(task)
    if not tasks:
        raise InvalidInput(f"{printable(reference)} gave no tasks", "give a task, or a list of them")
    return tasks


def _check_members(task: Task, reference: str) -> None:
    """InvalidInput for a task whose members are not what they should be; Failed when to look at one raises."""
    wanted: tuple[tuple[str, Callable[[object], bool], str], ...] = (
        ("model", lambda found: isinstance(found, nn.Module), "a torch.nn.Module"),
        ("likelihood", lambda found: found in get_args(Likelihood), " or ".join(get_args(Likelihood))),
        ("names", lambda found: isinstance(found, Mapping), "a dict from parameters to tensors, {} for none"),
        ("batches", callable, "a function"),
        ("outputs", callable, "a function of a model and a batch"),
    )
    for member, fits, told in wanted:
        found = call_user(getattr, reference, task, member)
        if not fits(found):
            shown = printable(repr(found), 60)
            raise InvalidInput(f"{printable(reference)}: the {member} of the task is {shown}", f"it is {told}")


def tensor_names(task: Task, checkpoint: Readable) -> dict[str, str]:
    """{parameter: tensor of the checkpoint} of every parameter of the model that the checkpoint has, ties once.

    InvalidInput when shapes differ or nothing matches.
    """
    found = {}
    for name, parameter in task.model.named_parameters():
        stored = task.names.get(name, name)
        info = checkpoint.tensors.get(stored)
        if info is None:
            continue
        if info.shape != tuple(parameter.shape):
            fact = f"{printable(checkpoint.label)}: {printable(stored)} has shape {list(info.shape)}, but "
            raise InvalidInput(f"{fact}{list(parameter.shape)} in the task's model", "the task is about another model")
        found[name] = stored
    if not found:
        fact = f"{printable(checkpoint.label)}: no tensor has the name of a parameter of the task's model"
        raise InvalidInput(fact, "give the task `names`, from its parameters to the checkpoint's tensors")
    return found


def checked_batches(task: Task, limit: int | None = None) -> Iterator[Batch]:
    """The batches, checked, cut so that they hold `limit` examples in all; InvalidInput for what cannot be used."""
    seen = 0
    for number, batch in enumerate(task.batches()):
        count = examples_in(batch, number)
        if limit is not None and seen + count > limit:
            batch, count = {name: tensor[: limit - seen] for name, tensor in batch.items()}, limit - seen
        seen += count
        if count:
            yield batch
        if seen == limit:
            return
    if not seen:
        raise InvalidInput("the data is empty", "give at least one example")
    if limit is not None and seen < limit:
        raise InvalidInput(f"{limit:,} examples are asked for, the data has {seen:,}", f"--limit {seen}, or more data")


def examples_in(batch: Batch, number: int) -> int:
    """How many examples a batch holds. InvalidInput when its tensors disagree."""
    counts = {len(t) if isinstance(t, Tensor) and t.ndim and t.layout is torch.strided else -1 for t in batch.values()}
    if not all(isinstance(name, str) for name in batch):
        raise InvalidInput(f"batch {number}: a name in it is no text", "a batch maps names to tensors")
    if len(counts) != 1 or min(counts) < 0:
        told = ", ".join(f"{name} {list(t.shape)}" for name, t in batch.items() if isinstance(t, Tensor))
        fact = f"batch {number}: not all its tensors have one row an example: {printable(told)}"
        raise InvalidInput(fact, "the first dimension of every tensor in a batch is the examples")
    return counts.pop()


def example_losses(outputs: Tensor, batch: Batch, likelihood: Likelihood) -> Tensor:
    """Negative log-likelihood of each example, summed over its positions: (examples,). InvalidInput for bad labels."""
    labels = batch.get("labels")
    if labels is None:
        raise InvalidInput("the data has no labels", "give the batches a tensor called labels")
    if likelihood == "regression":
        if labels.is_complex() or labels.numel() != outputs.numel():
            fact = f"the labels are {labels.dtype} {list(labels.shape)}, the outputs {list(outputs.shape)}"
            raise InvalidInput(fact, "for regression give a number for each value that the model puts out")
        return (0.5 * (outputs - labels.to(outputs.dtype).view_as(outputs)) ** 2).flatten(1).sum(1)
    check_labels(labels, outputs.shape[-1])
    if labels.numel() * outputs.shape[-1] != outputs.numel():
        fact = f"the labels are {list(labels.shape)}, but the task's outputs are {list(outputs.shape)}"
        raise InvalidInput(fact, "logits are (examples, classes) or (examples, positions, classes), a row a label")
    flat = labels.flatten().long()
    losses = functional.cross_entropy(outputs.flatten(0, -2), flat, ignore_index=IGNORED, reduction="none")
    return losses.view(len(labels), -1).sum(1)


def check_labels(labels: Tensor, classes: int) -> None:
    """InvalidInput for labels that are not integers or are outside the head."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InvalidInput(f"labels are {labels.dtype}, not integers", "for regression set the task's likelihood")
    counted = labels[labels != IGNORED]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        worst = int(counted.max()) if int(counted.max()) >= classes else int(counted.min())
        raise InvalidInput(f"the label {worst} is outside the model's {classes} classes", "check the data, or the head")


def code_digest(task: Task) -> str:
    """What tells a task's code from another's: the files that its model, data and outputs are written in."""
    digest = hashlib.sha256()
    for part in (type(task.model).forward, getattr(task, "forward", type(task).outputs), getattr(task, "data", None)):
        code = getattr(part, "__code__", None)
        if code is not None:
            path = Path(code.co_filename)
            digest.update(path.read_bytes() if path.is_file() else code.co_code)
    return digest.hexdigest()


class DataDigest:
    """A running digest of batches: the same data gives the same, however it is cut into batches."""

    def __init__(self) -> None:
        self._digests: dict[str, hashlib._Hash] = {}

    def add(self, batch: Batch) -> None:
        """Take in one batch."""
        for name, tensor in sorted(batch.items()):
            digest = self._digests.setdefault(name, hashlib.sha256(f"{name} {tensor.dtype}".encode()))
            for row in tensor.detach().cpu().contiguous():
                digest.update(json.dumps(list(row.shape)).encode())
                digest.update(as_bytes(row.reshape(-1).contiguous()))

    def hexdigest(self) -> str:
        """The digest so far."""
        joined = {name: digest.hexdigest() for name, digest in self._digests.items()}
        return hashlib.sha256(json.dumps(joined, sort_keys=True).encode()).hexdigest()
