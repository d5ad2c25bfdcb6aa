"""What modules were called with, and where in the graph their results lie, noted while a model computes its outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

Widen: TypeAlias = Callable[[nn.Module, object], object]


@dataclass(frozen=True)
class Call:
    """One call of a module: `tensors` are those among its arguments, in order.

    `edges` are the places of its results in the graph, as they were when it returned: what a later operation in place
    makes of a result does not concern the module.
    """

    module: nn.Module
    arguments: tuple[object, ...]
    keywords: dict[str, object]
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]
    edges: tuple[GradientEdge, ...]
    places: tuple[int, ...]  # which of the results have an edge
    shapes: tuple[torch.Size, ...]

    def untouched(self) -> bool:
        """Whether the arguments still hold what the module saw."""
        return all(t._version == before for t, before in zip(self.tensors, self.versions, strict=True))


@contextmanager
def recorded(modules: Collection[nn.Module], widen: Widen | None = None) -> Iterator[dict[nn.Module, list[Call]]]:
    """Note every call of these modules. `widen` may put another result in the place of a module's own, or give None."""
    calls: dict[nn.Module, list[Call]] = {}

    def note(module: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object], result: object) -> object:
        if not torch.is_grad_enabled():
            return None
        wider = None if widen is None else widen(module, result)
        made = _apart(result) if wider is None else wider
        calls.setdefault(module, []).append(_call(module, arguments, keywords, made))
        return made

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def with_tensors(value: object, tensors: Iterator[Tensor]) -> object:
    """The same value with other tensors, in the order of `tensors_in`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [with_tensors(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _apart(result: object) -> object:
    """Several results, made so that the gradient of each holds nothing that came through another of them."""
    asking = sum(tensor.requires_grad for tensor in tensors_in(result))
    if asking < 2 or type(result) not in (tuple, list, dict):
        return result
    return with_tensors(result, (t.view_as(t) if t.requires_grad else t for t in tensors_in(result)))


def _call(module: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object], result: object) -> Call:
    tensors = tuple(tensors_in([arguments, keywords]))
    results = list(tensors_in(result))
    places = tuple(place for place, tensor in enumerate(results) if tensor.requires_grad)
    return Call(
        module,
        arguments,
        keywords,
        tensors,
        tuple(tensor._version for tensor in tensors),
        tuple(get_gradient_edge(results[place]) for place in places),
        places,
        tuple(results[place].shape for place in places),
    )


def owners(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[list[tuple[nn.Module, str]]]:
    """For each parameter the modules whose own it is, and what they call it; several where weights are tied.

    Attention of torch reads the weight of its last projection without calling it, so it owns that weight.
    """
    wanted = {id(parameter): place for place, parameter in enumerate(parameters)}
    found: list[list[tuple[nn.Module, str]]] = [[] for _ in parameters]
    for module in model.modules():
        inner = module.out_proj if isinstance(module, nn.MultiheadAttention) else None
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if isinstance(inner, nn.Module):
            own |= {f"out_proj.{name}": p for name, p in inner.named_parameters(recurse=False)}
        for name, parameter in own.items():
            if id(parameter) in wanted:
                found[wanted[id(parameter)]].append((module, name))
    attention = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    return [[(module, name) for module, name in held if id(module) not in attention] for held in found]
