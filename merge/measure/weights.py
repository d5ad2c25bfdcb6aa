"""Which weights of a model have inputs that can be measured, and which of them share theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput, Refused, printable
from paramsmith.merge.task import Batch, Task
from paramsmith.userfile import call_user

from .calls import owners
from .inputs import first_tensor, is_convolution, is_transposed, multiplies, width


@dataclass(frozen=True)
class Weights:
    """The weights whose inputs are measured: modules by tensor name; and which have the very inputs of another."""

    modules: Mapping[str, Sequence[nn.Module]]
    same: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def passes(self, bytes_of: Callable[[int, int], int], memory: int | None) -> list[list[str]]:
        """The weights of each pass over the data: as many as the sums of which fit. Refused when one alone does not.

        `bytes_of` (groups, inputs of a group) is what the sums of a weight take.
        """
        groups, filled = list[list[str]](), math.inf
        for name in (name for name in self.modules if name not in self.same):
            size = bytes_of(*width(self.modules[name][0]))
            if memory is not None and size > memory:
                fact = f"{printable(name)}: its sums take {size:,} bytes, and the memory is {memory:,}"
                raise Refused(fact, f"--memory {math.ceil(size / 1e6)}MB, or leave the tensor out: --include")
            if not groups or (memory is not None and filled + size > memory):
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
        return groups

    def transposed(self) -> tuple[str, ...]:
        """Those that are stored (in, out)."""
        return tuple(name for name, modules in self.modules.items() if is_transposed(modules[0]))


def find_weights(task: Task, parameters: Mapping[str, nn.Parameter], batch: Batch) -> Weights:
    """The weights of linear layers and convolutions that the model uses for a batch, and which share their inputs.

    InvalidInput when there are none.
    """
    found: dict[str, list[nn.Module]] = {}
    other: list[str] = []
    held = owners(task.model, list(parameters.values()))
    for name, modules in zip(
        parameters, ([m for m, attribute in o if attribute == "weight"] for o in held), strict=True
    ):
        if modules and all(multiplies(module) for module in modules):
            found[name] = modules
        elif any(multiplies(module) for module in modules):
            other.append(name)
    seen = _seen(task, [m for modules in found.values() for m in modules], batch)
    order = {module: number for number, module in enumerate(seen)}
    unused = [name for name, modules in found.items() if not any(m in seen for m in modules)]
    used = [name for name in found if name not in unused]
    used.sort(key=lambda name: min(order[m] for m in found[name] if m in order))
    if not used:
        raise InvalidInput("no weight of a linear layer or convolution is used", "look at the task, and at --include")
    kept: dict[object, str] = {}
    for name in used:
        kept.setdefault(_inputs_of(name, found[name], seen), name)
    keys = {name: kept[_inputs_of(name, found[name], seen)] for name in used}
    told = ((other, "they are also used in another way"), (unused, "the model does not use them on this data"))
    return Weights(
        {name: found[name] for name in used},
        {name: first for name, first in keys.items() if first != name},
        tuple(f"not measured, as {why}: {_listed(names)}" for names, why in told if names),
    )


def _inputs_of(name: str, modules: Sequence[nn.Module], seen: Mapping[nn.Module, tuple[object, ...]]) -> object:
    """What is equal for weights with the same inputs: one module, called once, with the same tensor."""
    inputs = seen.get(modules[0], ())
    return (inputs, _geometry(modules[0])) if len(modules) == len(inputs) == 1 else name


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names[:3])) + (f" and {len(names) - 3:,} others" if len(names) > 3 else "")


def _geometry(module: nn.Module) -> object:
    """What makes other patches of the same input."""
    if not is_convolution(module):
        return None
    shape = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
    return type(module), shape


def _seen(task: Task, modules: Sequence[nn.Module], batch: Batch) -> dict[nn.Module, tuple[object, ...]]:
    """Which inputs each module has, in one forward pass of the first example."""
    seen: dict[nn.Module, tuple[object, ...]] = {}
    alive: list[Tensor] = []  # so that no two have the same id

    def note(module: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]) -> None:
        x = first_tensor(arguments, keywords)
        if x is not None:
            alive.append(x)
            seen[module] = (*seen.get(module, ()), (id(x), x._version))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            call_user(task.outputs, "the task's outputs", task.model, {name: t[:1] for name, t in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return seen
