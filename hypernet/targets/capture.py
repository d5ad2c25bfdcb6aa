"""The graph of a module that can be run, or, where only its tensors are known, their chain."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paramsmith.errors import GenerateWarning, InvalidInput, printable

from .contraction import contract
from .graph import MAX_NODES, Graph, Node
from .target import Slot, TargetSpec
from .tracing import Inputs, exported, symbolic

# how a tensor is read, as its role tells, where that is all there is
_READ_BY = {"matrix": "aten.linear", "head": "aten.linear", "embedding": "aten.embedding", "position": "aten.add"}
_CONVOLUTIONS = {3: "aten.conv1d", 4: "aten.conv2d", 5: "aten.conv3d"}


def capture(module: nn.Module, inputs: Inputs, spec: TargetSpec) -> Graph:
    """The graph of a module for inputs of these shapes: a tuple of tensors, or keyword arguments by name.

    Nothing is computed and nothing allocated: the module, and the inputs, may be on the meta device, and their values
    do not matter. The module is left as it is. In both modes dropout is passed over, so that the graph is the same.

    Where torch.export cannot follow (control flow that depends on data), torch.fx is tried, then the tensors are
    chained in the order of the spec; a GenerateWarning gives the reason, `Graph.source` tells which it was.
    """
    shapes, reasons = [slot.shape for slot in spec.slots], []
    copied, faked = _unallocated(module, inputs)
    slot_of = _slots_by_id(copied, spec)
    for source, tracer in (("export", exported), ("fx", symbolic)):
        try:
            graph = contract(tracer(copied, faked, slot_of), shapes, "export" if source == "export" else "fx")
        except (Exception, SystemExit) as problem:  # noqa: BLE001  # whatever the module's own code raises
            reasons.append(f"torch.{source} says: {_reason(problem)}")
            continue
        break
    else:
        graph = chain(spec)
    if reasons:
        kind = "coarser" if graph.source == "fx" else "a chain of its tensors"
        warnings.warn(f"the graph of {type(module).__name__} is {kind}; {'; '.join(reasons)}", GenerateWarning, 2)
    if len(graph.nodes) > MAX_NODES:
        raise InvalidInput(f"the target has {len(graph.nodes):,} operations", f"a graph has at most {MAX_NODES:,}")
    return graph


def chain(spec: TargetSpec) -> Graph:
    """The tensors of a target one after the other, as the spec has them; a norm's two are one node.

    >>> spec = TargetSpec((Slot("0.weight", (8, 4), "F32", "matrix", 4), Slot("0.bias", (8,), "F32", "bias", 4)))
    >>> [node.op for node in chain(spec).nodes], chain(spec).edges, chain(spec).node_of
    (['input', 'aten.linear', 'bias'], ((0, 1), (1, 2)), (1, 2))
    """
    batched = {buffer.name.rpartition(".")[0] for buffer in spec.buffers if buffer.name.endswith("running_mean")}
    nodes, node_of, norms = [Node("input")], [], {}
    for slot in spec.slots:
        layer = slot.name.rpartition(".")[0]
        if slot.role in ("norm_scale", "norm_shift"):
            if layer not in norms:
                norms[layer] = len(nodes)
                nodes.append(Node("aten.batch_norm" if layer in batched else "aten.layer_norm", slot.shape))
            node_of.append(norms[layer])
        else:
            node_of.append(len(nodes))
            nodes.append(Node(_op(slot), slot.shape))
    edges = tuple((number, number + 1) for number in range(len(nodes) - 1))
    return Graph(tuple(nodes), edges, tuple(node_of), "chain")


def _op(slot: Slot) -> str:
    if slot.role == "kernel":
        return _CONVOLUTIONS.get(len(slot.shape), "aten.convolution")
    return _READ_BY.get(slot.role, slot.role)


def _slots_by_id(module: nn.Module, spec: TargetSpec) -> dict[int, int]:
    """{id of a parameter: its slot}, under whichever of its names the spec has it."""
    named = dict(module.named_parameters(remove_duplicate=False))
    names = [(number, name) for number, slot in enumerate(spec.slots) for name in (slot.name, *slot.copies)]
    return {id(named[name]): number for number, name in reversed(names) if name in named}


def _unallocated(module: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of the module, and inputs, of fake tensors: as on the CPU, without memory, wherever they are.

    The module itself where Python cannot copy it; export does not change it either.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        plain = (each for part in module.modules() for each in vars(part).values() if isinstance(each, Tensor))
        memo: dict[int, object] = {id(each): torch.empty(each.shape, dtype=each.dtype) for each in plain}
        memo |= {id(each): torch.empty(each.shape, dtype=each.dtype) for each in module.buffers()}
        for each in module.parameters():
            memo[id(each)] = nn.Parameter(torch.empty(each.shape, dtype=each.dtype), each.requires_grad)
        faked: Inputs
        if isinstance(inputs, Mapping):
            faked = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in inputs.items()}
        else:
            faked = tuple(torch.empty(each.shape, dtype=each.dtype) for each in inputs)
    try:
        return copy.deepcopy(module, memo), faked
    except Exception:  # noqa: BLE001  # a module may hold anything
        return module, inputs


def _reason(problem: BaseException) -> str:
    """What an exception says, in one line, and which line of the target's code it came from."""
    said = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    said = said.partition(". ")[0]  # the rest is advice
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    theirs = [frame for frame in traceback.extract_tb(problem.__traceback__) if not frame.filename.startswith(ours)]
    if not theirs:
        return printable(said)
    last = theirs[-1]
    return (
        f"{printable(said)} ({printable(Path(last.filename).name)}, line {last.lineno}: {printable(last.line or '')})"
    )
