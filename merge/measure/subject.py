"""What is measured: the parameters of a task's model that a checkpoint holds, put in order for it and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.device import pick_device
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.memory import as_bytes
from paramsmith.merge.task import Task, tensor_names
from paramsmith.model_config import layer_index
from paramsmith.params import Layer, matches

# Elements of each tensor that are compared with the checkpoint's.
_COMPARED = 1024


@dataclass(frozen=True)
class Report:
    """What was written: `kind` as in paramsmith.statistics, how many examples it rests on, and what to know of it."""

    output: Path
    kind: str
    examples: int
    seconds: float
    warnings: tuple[str, ...] = ()


def targets(task: Task, checkpoint: Checkpoint, include: str | None) -> dict[str, nn.Parameter]:
    """{tensor of the checkpoint: the parameter}, in the checkpoint's order, of those that the filter lets through.

    InvalidInput when nothing is left, or the task's model holds other weights than the checkpoint.
    """
    own = dict(task.model.named_parameters())
    named = tensor_names(task, checkpoint)
    for name in own:
        kept = checkpoint.aliases.get(task.names.get(name, name))
        if name not in named and kept in checkpoint.tensors:
            named[name] = kept
    found: dict[str, nn.Parameter] = {}
    for name, stored in named.items():
        if found.get(stored, own[name]) is not own[name]:
            fact = f"{printable(stored)} of the checkpoint is two parameters of the task's model"
            raise InvalidInput(fact, "tie them there: one tensor has one gradient")
        if own[name].is_floating_point() and own[name].numel():
            found[stored] = own[name]
            _check_weights(checkpoint, stored, own[name])
    wanted = [name for name in checkpoint.tensors if name in found and _included(checkpoint, include, name)]
    if not wanted:
        raise InvalidInput(f"no parameter of the model matches {printable(include)!r}", "filters match tensor names")
    return {name: found[name] for name in wanted}


@contextmanager
def at_rest(model: nn.Module, device: str | None, asking: Mapping[str, nn.Parameter]) -> Iterator[torch.device]:
    """The model in eval mode on the device, gradients asked for these parameters only; afterwards as it was.

    Torch's fused encoder layers are off meanwhile: whether they run would depend on which parameters ask for gradients.
    """
    modes = {module: module.training for module in model.modules()}
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    before = next(model.parameters()).device
    here = before if device is None else pick_device(device)
    wanted = {id(parameter) for parameter in asking.values()}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.to(here) if here != before else None
        model.eval()
        for parameter in asked:
            parameter.requires_grad_(id(parameter) in wanted)
        yield next(model.parameters()).device
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes.items():
            module.training = mode
        for parameter, ask in asked.items():
            parameter.requires_grad_(ask)
        model.to(before) if here != before else None


def stored_tensor(checkpoint: Checkpoint, name: str, most: int | None = None) -> Tensor:
    """A tensor of a checkpoint, or the first elements of it as a vector."""
    info = checkpoint.tensors[name]
    count = info.count if most is None else min(most, info.count)
    held = torch.empty(count, dtype=torch_dtype(info.dtype))
    if count:
        checkpoint.reader(name)(0, as_bytes(held))
    return held if most is not None else held.view(info.shape)


def not_measured(checkpoint: Checkpoint, task: Task, measured: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """A warning about tensors of the checkpoint that the task's model does not have."""
    buffers = {task.names.get(name, name) for name, _ in task.model.named_buffers()}
    left = [name for name in checkpoint.tensors if name not in measured and name not in buffers]
    if not left:
        return ()
    others = f" and {len(left) - 1:,} others" if len(left) > 1 else ""
    return (
        f"{printable(checkpoint.label)}: not measured, as the task's model has no such parameter: "
        f"{printable(left[0])}{others}",
    )


def _included(checkpoint: Checkpoint, include: str | None, name: str) -> bool:
    if include is None:
        return True
    indices = [index for n in checkpoint.tensors if (index := layer_index(n)) is not None]
    at = layer_index(name)
    layer = None if at is None else Layer(index=at, count=max(indices) + 1)
    try:
        return matches(include, name, layer)
    except ValueError as problem:
        raise InvalidInput(f"include: {printable(problem)}", "a part of the name, /regex/ or layers[0:8]") from None


def _check_weights(checkpoint: Checkpoint, name: str, parameter: nn.Parameter) -> None:
    if checkpoint.tensors[name].dtype.kind != "float":
        return
    stored = stored_tensor(checkpoint, name, _COMPARED)
    held = parameter.detach().reshape(-1)[: len(stored)].cpu()
    narrow = stored.dtype if stored.dtype.itemsize < held.dtype.itemsize else held.dtype
    if not torch.equal(held.to(narrow).nan_to_num(), stored.to(narrow).nan_to_num()):
        fact = f"{printable(checkpoint.label)}: {printable(name)} is not what the task's model holds"
        raise InvalidInput(fact, "load the checkpoint's weights in the task: statistics go with their model")
