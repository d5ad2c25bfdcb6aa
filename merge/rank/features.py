"""What a model makes of a task's data: the features that its head reads, and the classes that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from paramsmith.dtypes import torch_dtype
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.memory import as_bytes
from paramsmith.merge.learn.feeds import batches_of, on_device, outputs_of
from paramsmith.merge.task import IGNORED, Batch, Task, check_labels, tensor_names
from paramsmith.statistics import Readable
from paramsmith.userfile import call_user

Features: TypeAlias = Callable[[nn.Module, Batch], Tensor]
_Reader: TypeAlias = Callable[[Batch, Tensor], Tensor]  # (batch, outputs) -> a row for each label
_HINT = "give a function of the model and a batch that returns them, or the task a method `features`"


def features_of(
    task: Task, *, features: Features | None = None, limit: int | None = None, labelled: bool = True
) -> tuple[Tensor, Tensor]:
    """The penultimate features (n, d), float64, and the labels (n,) of a task's data.

    They are what goes into the last Linear that the model runs, its head, at the place that it predicts from; or what
    `features(model, batch)` gives, or the task's own method of that name: a row for each label. Positions that are not
    labelled are left out. Not `labelled`: data without labels will do, and gets labels of 0.
    InvalidInput where there is no such layer, no labels, no data; Failed for features that are not finite.
    """
    with _reading(task, features) as read:
        labels, found = _observe(task, [read], limit, labelled)
    return found[0], labels


def predictions_of(task: Task, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The predicted classes and the labels (n,) of a classifier's data. InvalidInput for labels outside its head."""
    labels, found = _observe(task, [_predicted(task, checked=True)], limit)
    return found[0], labels


def features_and_predictions_of(
    task: Task, *, features: Features | None = None, limit: int | None = None, labelled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, predicted classes and labels; the labels may be of other classes than the predictions."""
    with _reading(task, features) as read:
        labels, found = _observe(task, [read, _predicted(task, checked=False)], limit, labelled)
    return found[0], found[1], labels


@torch.no_grad()
def load_weights(task: Task, checkpoint: Readable) -> None:
    """Give the task's model a checkpoint's weights, buffers too. InvalidInput when it lacks one of the parameters."""
    model, found = task.model, tensor_names(task, checkpoint)
    lacking = next((name for name, _ in model.named_parameters() if name not in found), None)
    if lacking is not None:
        fact = (
            f"{printable(checkpoint.label)}: has no tensor for the parameter {printable(lacking)} of the task's model"
        )
        raise InvalidInput(fact, "give a function that makes a task of each checkpoint")
    holders = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, holder in holders.items():
        stored = found.get(name, task.names.get(name, name))
        info = checkpoint.tensors.get(stored)
        if info is None or info.shape != tuple(holder.shape):
            continue
        held = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
        checkpoint.reader(stored)(0, as_bytes(held))
        holder.copy_(held)


@torch.no_grad()
def _observe(
    task: Task, readers: list[_Reader], limit: int | None, labelled: bool = True
) -> tuple[Tensor, list[Tensor]]:
    task.model.eval()
    kept_labels: list[Tensor] = []
    kept: list[list[Tensor]] = [[] for _ in readers]
    for batch in batches_of(task, limit):
        moved = on_device(task, batch)
        outputs = outputs_of(task, moved)
        if bool(outputs.isnan().any()):
            raise Failed("its outputs on the data hold NaN", "leave this model out, or load it in float32")
        read = [reader(moved, outputs) for reader in readers]
        labels = batch.get("labels")
        if labels is None and labelled:
            raise InvalidInput("the data has no labels", "give the batches a tensor called labels")
        labels = torch.zeros(read[0].shape[:-1], dtype=torch.long) if labels is None else labels
        regression = labels.dtype.is_floating_point
        places = labels.shape[:1] if regression else labels.shape
        chosen = slice(None) if regression else (labels != IGNORED).flatten().cpu()
        for rows, values in zip(kept, read, strict=True):
            if values.shape[: len(places)] != places:
                told = f"there is no row of {list(values.shape)} for each of the labels {list(labels.shape)}"
                raise InvalidInput(told, _HINT)
            rows.append(values.cpu().reshape(places.numel(), *values.shape[len(places) :])[chosen])
        kept_labels.append(labels.cpu().reshape(places.numel(), *labels.shape[len(places) :])[chosen])
    found = [torch.cat(rows) for rows in kept]
    if not len(found[0]):
        raise InvalidInput("the data has no labels that count", f"all of them are {IGNORED}")
    if not all(bool(torch.isfinite(values).all()) for values in found):
        raise Failed("the features hold NaN or an infinity", "leave this model out, or load it in float32")
    return torch.cat(kept_labels), found


def _predicted(task: Task, checked: bool) -> _Reader:
    if task.likelihood != "categorical":
        raise InvalidInput("the task is a regression", "this score is for classes")

    def read(batch: Batch, outputs: Tensor) -> Tensor:
        if checked and "labels" in batch:
            check_labels(batch["labels"], outputs.shape[-1])
        return outputs.argmax(-1)

    return read


@contextmanager
def _reading(task: Task, features: Features | None) -> Iterator[_Reader]:
    """A reader of features; hooks stay on the model for as long as it is in use."""
    own: object = features or getattr(task, "features", None)
    if callable(own):
        function = own

        def read_own(batch: Batch, outputs: Tensor) -> Tensor:
            found = call_user(function, "the task's features", task.model, batch)
            if not isinstance(found, Tensor) or found.ndim < 2:
                raise InvalidInput("the task's features are no tensor of rows", "return (examples, values)")
            return found.double()

        yield read_own
        return
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(features=arguments[0], output=output)

    def read(batch: Batch, outputs: Tensor) -> Tensor:
        if not seen:
            raise InvalidInput("the model runs no Linear whose input could be its features", _HINT)
        return _at_predictions(seen["features"], seen["output"], outputs).double()

    hooks = [module.register_forward_hook(note) for module in task.model.modules() if isinstance(module, nn.Linear)]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _at_predictions(features: Tensor, head: Tensor, outputs: Tensor) -> Tensor:
    """The features behind each row of outputs, where the model or the task uses only some positions of its head."""
    if head.shape == outputs.shape:
        return features
    if head.shape[-1] == outputs.shape[-1] and head.ndim == 3:
        if outputs.ndim == 2:  # one position a text: the one whose logits came out
            same = (head == outputs[:, None]).all(-1)  # (examples, positions)
            if bool(same.any(1).all()):
                return features[torch.arange(len(features)), same.int().argmax(1)]
        elif outputs.ndim == 3 and torch.equal(head[:, : outputs.shape[1]], outputs):
            return features[:, : outputs.shape[1]]  # the last position predicts nothing that is known
    told = f"the last Linear gives {list(head.shape)}, but the task's outputs are {list(outputs.shape)}"
    raise InvalidInput(f"{told}: it is not the head", _HINT)
