"""A run of a network, line by line: from torch.export, or, coarser, from torch.fx."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, fx, nn

from .contraction import Parameter, Step, Trace

if TYPE_CHECKING:
    from torch.fx.node import Argument

Inputs: TypeAlias = Sequence[Tensor] | Mapping[str, Tensor]
Read: TypeAlias = int | Parameter  # a step by its number, or a tensor of the target
Seen: TypeAlias = Read | Sequence[Read]  # what a line stands for: several where it puts out several

# what Python's operators and older names are called in torch
_SAME = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div", "concat": "cat"}


def exported(module: nn.Module, inputs: Inputs, slot_of: Mapping[int, int]) -> Trace:
    """What torch.export sees, without computing anything: all operations, with shapes. Raises what export raises.

    `slot_of`: the slot of a parameter by its id.
    """
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    with _quietly():
        program = torch.export.export(_TensorsOnly(module), args, kwargs, strict=False)
    signature, named = program.graph_signature, dict(module.named_parameters(remove_duplicate=False))
    lines, given = _Lines(program.graph_module, slot_of), []
    for line in program.graph.find_nodes(op="placeholder"):
        name = signature.inputs_to_parameters.get(line.name, "").removeprefix("module.")
        kind = "input" if line.name in signature.user_inputs else "constant"
        given.append(lines.tensor(named[name]) if name else lines.step(kind, line))
    return lines.trace(program.graph, given)


def symbolic(module: nn.Module, inputs: Inputs, slot_of: Mapping[int, int]) -> Trace:
    """What torch.fx sees: layers of torch as one operation each, no shapes. Raises what the tracer raises."""
    expected = inspect.signature(module.forward).parameters
    passed = set(inputs) if isinstance(inputs, Mapping) else set(list(expected)[: len(inputs)])
    defaults = {name: each.default for name, each in expected.items() if each.default is not inspect.Parameter.empty}
    fixed = {name: value for name, value in defaults.items() if name not in passed}
    with _quietly():
        graph = fx.Tracer().trace(module, concrete_args=fixed or None)
    lines = _Lines(module, slot_of)
    places = graph.find_nodes(op="placeholder")
    given = [lines.step("input" if str(line.target).lstrip("*") in passed else "constant", line) for line in places]
    return lines.trace(graph, given)


class _TensorsOnly(nn.Module):
    """A module whose outputs are reduced to the tensors among them, whatever holds them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.module(*args, **kwargs)))


def _tensors(found: object) -> Iterator[Tensor]:
    within: Sequence[object] = ()
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        within = list(found.values())
    elif isinstance(found, list | tuple):
        within = found
    elif is_dataclass(found):
        within = [getattr(found, each.name) for each in fields(found)]
    for each in within:
        yield from _tensors(each)


@contextmanager
def _quietly() -> Iterator[None]:
    """No warnings of the tracers, and no fused transformer layers, in which single tensors cannot be told apart.

    When export fails it prints what it has so far, and logs; the exception says enough.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    loggers = [logger for name, logger in logging.root.manager.loggerDict.items() if name.split(".")[0] == "torch"]
    silenced = [logger for logger in loggers if isinstance(logger, logging.Logger) and not logger.disabled]
    torch.backends.mha.set_fastpath_enabled(False)
    for logger in silenced:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for logger in silenced:
            logger.disabled = False


@dataclass
class _Lines:
    """The lines of fx graphs as steps, graphs within graphs in their place."""

    module: nn.Module  # holds what lines refer to by name
    slot_of: Mapping[int, int]
    steps: list[Step] = field(default_factory=list)

    def trace(self, graph: fx.Graph, given: Sequence[Seen]) -> Trace:
        outputs = self.run(graph, given)
        return Trace(tuple(self.steps), tuple(each for each in outputs if isinstance(each, int)))

    def run(self, graph: fx.Graph, given: Sequence[Seen]) -> list[Read]:
        """Append the lines of a graph; what it puts out. `given`: what its placeholders stand for."""
        seen: dict[fx.Node, Seen] = dict(zip(graph.find_nodes(op="placeholder"), given, strict=True))
        for line in graph.nodes:
            if line.op == "output":
                return _reads(line.args, seen)
            if line.op != "placeholder":
                seen[line] = self.line(line, seen)
        return []

    def line(self, line: fx.Node, seen: Mapping[fx.Node, Seen]) -> Seen:
        if line.op == "get_attr":
            return self.attribute(line)
        reads = _reads((line.args, line.kwargs), seen)
        if line.op == "call_module":
            layer = self.module.get_submodule(str(line.target))
            return self.step(_layer_name(layer), line, [*reads, *map(self.tensor, layer.parameters())])
        name = _name(line.target)
        if name.startswith("higher_order.wrap_with_"):  # no_grad and autocast: what is inside, as if it were not
            bodies = [place for place, each in enumerate(line.args) if _is_body(each)]
            body = self.module.get_submodule(str(line.args[bodies[0]].target))  # type: ignore[union-attr]
            given = [_reads(each, seen)[0] for each in line.args[bodies[0] + 1 :]]
            return _Lines(body, self.slot_of, self.steps).run(body.graph, given)  # type: ignore[arg-type]
        whole = seen.get(line.args[0]) if line.args and isinstance(line.args[0], fx.Node) else None
        if name == "aten.getitem" and isinstance(whole, Sequence) and isinstance(line.args[1], int):
            return whole[line.args[1]]
        writes = name.endswith("_") and not name.endswith("__")
        return self.step(name.rstrip("_") if writes else name, line, reads, writes)

    def attribute(self, line: fx.Node) -> Seen:
        found: object = self.module
        for part in str(line.target).split("."):
            found = getattr(found, part)
        return self.tensor(found) if isinstance(found, nn.Parameter) else self.step("constant", line)

    def tensor(self, found: Tensor) -> Parameter:
        return Parameter(self.slot_of.get(id(found)), tuple(found.shape))

    def step(self, op: str, line: fx.Node, reads: Sequence[Read] = (), writes: bool = False) -> int:
        told = line.meta.get("val")
        values = [each for each in (told if isinstance(told, list | tuple) else [told]) if isinstance(each, Tensor)]
        shape = tuple(map(int, values[0].shape[1:])) if values else ()
        # fx tells nothing; export tells of sizes and of nothing put out as well
        numbers = "val" not in line.meta or any(each.is_floating_point() or each.is_complex() for each in values)
        self.steps.append(Step(op, tuple(reads), shape, numbers, writes))
        return len(self.steps) - 1


def _reads(arguments: Argument, seen: Mapping[fx.Node, Seen]) -> list[Read]:
    found: list[Read] = []

    def take(line: fx.Node) -> fx.Node:
        each = seen[line]
        found.extend(each if isinstance(each, Sequence) else [each])
        return line

    fx.map_arg(arguments, take)
    return found


def _is_body(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _name(target: object) -> str:
    """The name of what a line calls.

    >>> _name(torch.ops.aten.relu_.default), _name(torch.flatten), _name("view")
    ('aten.relu_', 'aten.flatten', 'aten.view')
    """
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.__name__}"
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    return f"aten.{_SAME.get(name, name)}"


def _layer_name(layer: nn.Module) -> str:
    """The operation of a layer of torch, as export would name it where it is one.

    >>> _layer_name(nn.BatchNorm2d(1)), _layer_name(nn.LeakyReLU()), _layer_name(nn.AdaptiveAvgPool2d(1))
    ('aten.batch_norm', 'aten.leaky_relu', 'aten.adaptive_avg_pool2d')
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
    return "aten." + re.sub(r"(?<=norm)[123]d$", "", snake)
