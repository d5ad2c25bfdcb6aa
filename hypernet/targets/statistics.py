"""Running statistics of batch norms: buffers of a module, and tensors like others of a network that was trained.

For a target they are filled, mean 0 and variance 1, until they are measured. A checkpoint has those that were measured;
a zoo takes them for what they are there, part of the network, so that they can be generated, aligned and kept.
"""

from __future__ import annotations

from dataclasses import replace

from paramsmith.dtypes import DTYPES

from .graph import Graph, Node
from .target import Buffer, Role, Slot, TargetSpec

_ROLES: dict[str, Role] = {"running_mean": "norm_shift", "running_var": "norm_scale"}


def is_statistic(name: str) -> bool:
    """Whether a tensor is the running mean or variance of a norm.

    >>> is_statistic("1.running_var"), is_statistic("1.num_batches_tracked")
    (True, False)
    """
    return name.rpartition(".")[2] in _ROLES


def with_statistics(spec: TargetSpec) -> TargetSpec:
    """The target with its running means and variances as slots, each behind the others of its norm.

    A norm without weights has them at the end. What norms count, `num_batches_tracked`, stays a buffer.
    """
    found = [each for each in spec.buffers if is_statistic(each.name) and DTYPES[each.dtype].kind == "float"]
    if not found:
        return spec
    order = list(range(len(spec.slots)))  # numbers of slots, or of statistics behind these
    every = [*spec.slots, *map(_slot, found)]
    for number in range(len(spec.slots), len(every)):
        layer = _layer(every[number].name)
        last = max((place for place, other in enumerate(order) if _layer(every[other].name) == layer), default=None)
        order.insert(len(order) if last is None else last + 1, number)
    graph = None if spec.graph is None else _with_places(spec.graph, every, order)
    kept = tuple(buffer for buffer in spec.buffers if buffer not in found)
    return replace(spec, slots=tuple(every[number] for number in order), buffers=kept, graph=graph)


def _slot(buffer: Buffer) -> Slot:
    return Slot(buffer.name, buffer.shape, buffer.dtype, _ROLES[buffer.name.rpartition(".")[2]], 1)


def _with_places(graph: Graph, every: list[Slot], order: list[int]) -> Graph:
    """The graph with a node for each: that of its norm, or one without edges."""
    nodes, node_of = list(graph.nodes), list(graph.node_of)
    of_layer = {_layer(slot.name): node for slot, node in zip(every, node_of, strict=False)}
    for slot in every[len(node_of) :]:
        layer = _layer(slot.name)
        if layer not in of_layer:
            of_layer[layer] = len(nodes)
            nodes.append(Node("unused", slot.shape))
        node_of.append(of_layer[layer])
    return replace(graph, nodes=tuple(nodes), node_of=tuple(node_of[number] for number in order))


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
