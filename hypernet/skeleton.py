"""A hypernetwork built without memory: which tensors a config stands for, found before any of them is allocated."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from paramsmith.dtypes import DType, from_torch
from paramsmith.errors import InvalidInput, ParamsmithError, printable

from .kinds import Kind

if TYPE_CHECKING:
    from .artifact import Config

# Parts may make a tensor anew, and keep some that are not saved, before what is too large is refused.
_SLACK, _UNSAVED = 4, 1 << 28


def skeleton(kind: Kind, config: Config, numbers: int, tensors: int) -> dict[str, tuple[DType, tuple[int, ...]]]:
    """Type and shape of every tensor that is saved, by name.

    InvalidInput for a config that no part can be built from, or whose parts come to be much more than `numbers`
    numbers in `tensors` tensors, which are those of the file.
    """
    fields = config.model_dump(exclude={"class_name", "diffusers", "name_or_path"})
    most, count = _SLACK * numbers + _UNSAVED, _SLACK * tensors + 1000
    try:
        with _no_memory(), _at_most(most, count):
            made = getattr(importlib.import_module(kind.module), kind.class_name)(**fields)
    except ParamsmithError:
        raise
    except Exception as problem:  # noqa: BLE001 - parts may fail in any way over a config made by somebody
        told = printable(f"{type(problem).__name__}: {problem}".partition("\n")[0], 200)
        raise InvalidInput(f"its parts cannot be built: {told}", "it was not written by paramsmith") from None
    return {name: (from_torch(t.dtype), tuple(t.shape)) for name, t in made.state_dict().items()}


@contextmanager
def _no_memory() -> Iterator[None]:
    """Every tensor that is made has a shape and a type, and no values; nothing is drawn."""
    with torch.device("meta"), _Meta():
        yield


# What asks a tensor for its value, as a part does that draws a seed. A tensor without values answers 0.
_VALUE = (torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__bool__)


class _Meta(TorchFunctionMode):
    """A device that was asked for is not the one, and generators, which live on the CPU, are left out."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if func in _VALUE and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return func(torch.zeros((), dtype=args[0].dtype, device="cpu"))
        given = dict(kwargs or {})
        given.pop("generator", None)
        if given.get("device") is not None:
            given["device"] = torch.device("meta")
        return func(*args, **given)


@contextmanager
def _at_most(numbers: int, tensors: int) -> Iterator[None]:
    """Refuse modules that hold more than this, while they are built in this thread."""
    left, here = [numbers, tensors], threading.get_ident()

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is None or threading.get_ident() != here:
            return
        left[0] -= tensor.numel()
        left[1] -= 1
        if min(left) < 0:
            raise InvalidInput(
                "its parts are larger than what is in the file of tensors", "do not trust this generator"
            )

    with ExitStack() as stack:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            stack.callback(register(count).remove)
        yield
