"""Where training runs: the device, the precision, and the processes that share the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from paramsmith.device import pick_device
from paramsmith.errors import InvalidInput

from .course import Course

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

T = TypeVar("T")


@contextmanager
def accelerated(course: Course, logs: Path | None = None) -> Iterator[Accelerator]:
    """An accelerator on the course's device, in its precision; one that the program has made already stays as it is."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    device = pick_device(course.device)
    if course.precision == "fp16" and device.type == "cpu":
        raise InvalidInput("the precision fp16 needs a GPU", "--precision bf16 runs on a CPU")
    ours = not is_initialized()
    if not ours:
        _check_other(AcceleratorState(), course, device)
    if device.index is not None:
        torch.cuda.set_device(device)
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=course.precision,
            log_with=course.tracker,
            project_dir=logs or Path("logs"),
        )
    finally:
        if ours:
            AcceleratorState._reset_state(reset_partial_state=True)


def _check_other(state: AcceleratorState, course: Course, device: torch.device) -> None:
    """InvalidInput where an accelerator of the program itself, of which there can be one kind only, is of another."""
    if (state.mixed_precision, state.device.type) != (course.precision, device.type):
        told = f"in precision {state.mixed_precision} on {state.device.type}"
        raise InvalidInput(f"this program uses accelerate already, {told}", "train with its precision and device")


def mean(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Over all processes."""
    if accelerator.num_processes == 1:
        return value
    return cast(Tensor, accelerator.reduce(value, "mean"))


def share_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the mean gradient; one that a process has none of counts as 0 there."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = mean(accelerator, gradient)


def from_first(accelerator: Accelerator, value: T) -> T:
    """What the first process has, in every one."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    found: list[T] = broadcast_object_list([value])
    return found[0]


@torch.no_grad()
def begin_alike(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Give every process the tensors of the first."""
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor))
