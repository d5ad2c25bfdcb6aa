"""A target as JSON, and back; what comes back is checked before anything is allocated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard, get_args

from paramsmith.dtypes import DTYPES
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import MAX_DIMENSIONS

from .graph import MAX_NODES, Graph, Node, Source
from .target import MAX_NUMBERS, Buffer, Role, Slot, TargetSpec, check_sizes

MAX_SLOTS = 1_000_000
MAX_EDGES = 10_000_000
MAX_CONFIG = 10_000_000  # characters
_MAX_NAME = 1_000
_HINT = "it was not written by paramsmith, or was changed; make it again from the module or checkpoint"
_SLOT = {"name", "shape", "dtype", "role", "fan_in", "std", "class_axis", "copies"}
_BUFFER = {"name", "shape", "dtype", "fill"}
_GRAPH = {"nodes", "edges", "node_of", "source"}


def spec_to_json(spec: TargetSpec) -> dict[str, object]:
    """Plain data, compact, from which `spec_from_json` makes an equal spec."""
    told: dict[str, object] = {"slots": [_plain_slot(slot) for slot in spec.slots]}
    if spec.buffers:
        told["buffers"] = [
            {"name": b.name, "shape": list(b.shape), "dtype": b.dtype} | ({} if b.fill is None else {"fill": b.fill})
            for b in spec.buffers
        ]
    if spec.graph is not None:
        told["graph"] = {
            "nodes": [[node.op, list(node.shape)] for node in spec.graph.nodes],
            "edges": [list(edge) for edge in spec.graph.edges],
            "node_of": list(spec.graph.node_of),
            "source": spec.graph.source,
        }
    if spec.config is not None:
        told["config"] = dict(spec.config)
    return told


def spec_from_json(found: Mapping[str, object]) -> TargetSpec:
    """The spec; InvalidInput for what is none, or is larger than a target can be."""
    told = _object(found, {"slots", "buffers", "graph", "config"}, "it")
    slots = tuple(_slot(entry, f"slots[{i}]") for i, entry in enumerate(_list(told.get("slots"), MAX_SLOTS, "slots")))
    entries = _list(told.get("buffers", []), MAX_SLOTS, "buffers")
    buffers = tuple(_buffer(entry, f"buffers[{i}]") for i, entry in enumerate(entries))
    _check_names([n for s in slots for n in (s.name, *s.copies)] + [b.name for b in buffers])
    check_sizes({slot.name: slot.shape for slot in slots})
    graph = None if told.get("graph") is None else _graph(told["graph"], len(slots))
    return TargetSpec(slots, buffers, graph, _config(told.get("config")))


def _plain_slot(slot: Slot) -> dict[str, object]:
    told: dict[str, object] = {
        "name": slot.name,
        "shape": list(slot.shape),
        "dtype": slot.dtype,
        "role": slot.role,
        "fan_in": slot.fan_in,
    }
    if slot.std is not None:
        told["std"] = slot.std
    if slot.class_axis is not None:
        told["class_axis"] = slot.class_axis
    if slot.copies:
        told["copies"] = list(slot.copies)
    return told


def _slot(found: object, where: str) -> Slot:
    told = _object(found, _SLOT, where)
    shape = _shape(told.get("shape"), where)
    dtype = told.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES or DTYPES[dtype].kind != "float":
        raise _wrong(f"{where}.dtype", "a floating-point type of safetensors", dtype)
    role = next((known for known in get_args(Role) if known == told.get("role")), None)
    if role is None:
        raise _wrong(f"{where}.role", f"one of {', '.join(get_args(Role))}", told.get("role"))
    fan_in, std, axis = told.get("fan_in"), told.get("std"), told.get("class_axis")
    if not _natural(fan_in) or not 1 <= fan_in <= MAX_NUMBERS:
        raise _wrong(f"{where}.fan_in", "a number of inputs", fan_in)
    if std is not None and (not _finite(std) or std < 0):
        raise _wrong(f"{where}.std", "a standard deviation", std)
    if axis is not None and (not _natural(axis) or axis >= len(shape)):
        raise _wrong(f"{where}.class_axis", "an axis of the shape", axis)
    copies = [_name(name, f"{where}.copies") for name in _list(told.get("copies", []), MAX_SLOTS, f"{where}.copies")]
    name = _name(told.get("name"), f"{where}.name")
    return Slot(name, shape, dtype, role, fan_in, None if std is None else float(std), axis, tuple(copies))


def _buffer(found: object, where: str) -> Buffer:
    told = _object(found, _BUFFER, where)
    name, dtype, fill = _name(told.get("name"), f"{where}.name"), told.get("dtype"), told.get("fill")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _wrong(f"{where}.dtype", "a type of safetensors", dtype)
    if fill is not None and not _finite(fill):
        raise _wrong(f"{where}.fill", "a number", fill)
    shape = _shape(told.get("shape"), where)
    if math.prod(shape) > MAX_NUMBERS:
        raise _wrong(f"{where}.shape", f"of at most {MAX_NUMBERS:,} numbers", list(shape))
    return Buffer(name, shape, dtype, None if fill is None else float(fill))


def _graph(found: object, slots: int) -> Graph:
    told = _object(found, _GRAPH, "graph")
    nodes = tuple(
        _node(node, f"graph.nodes[{i}]") for i, node in enumerate(_list(told.get("nodes"), MAX_NODES, "nodes"))
    )
    edges = []
    for i, edge in enumerate(_list(told.get("edges"), MAX_EDGES, "graph.edges")):
        start, stop = edge if isinstance(edge, Sequence) and len(edge) == 2 else (None, None)
        if not _natural(start) or not _natural(stop) or not start < stop < len(nodes):
            raise _wrong(f"graph.edges[{i}]", f"[from, to] with from < to < {len(nodes)}", edge)
        edges.append((start, stop))
    node_of: list[int] = []
    for i, node in enumerate(_list(told.get("node_of"), MAX_SLOTS, "graph.node_of")):
        if not _natural(node) or node >= len(nodes):
            raise _wrong(f"graph.node_of[{i}]", f"the number of one of {len(nodes)} nodes", node)
        node_of.append(node)
    if len(node_of) != slots:
        raise _wrong("graph.node_of", f"as long as the list of slots, {slots}", f"{len(node_of)} long")
    source = next((known for known in get_args(Source) if known == told.get("source")), None)
    if source is None:
        raise _wrong("graph.source", f"one of {', '.join(get_args(Source))}", told.get("source"))
    return Graph(nodes, tuple(edges), tuple(node_of), source)


def _node(found: object, where: str) -> Node:
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 2:
        raise _wrong(where, "[operation, shape]", found)
    return Node(_name(found[0], where), _shape(found[1], where))


def _config(found: object) -> Mapping[str, object] | None:
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise _wrong("config", "an object", found)
    try:
        size = len(json.dumps(dict(found)))
    except (TypeError, ValueError, RecursionError) as problem:
        raise _wrong("config", "plain JSON", problem) from None
    if size > MAX_CONFIG:
        raise _wrong("config", f"at most {MAX_CONFIG:,} characters long", f"{size:,} long")
    return found


def _object(found: object, known: set[str], where: str) -> Mapping[str, object]:
    if not isinstance(found, Mapping):
        raise _wrong(where, "an object", found)
    unknown = next((key for key in found if key not in known), None)
    if unknown is not None:
        raise _wrong(where, f"made of {', '.join(sorted(known))}", unknown)
    return found


def _list(found: object, limit: int, where: str) -> Sequence[object]:
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise _wrong(where, "a list", found)
    if len(found) > limit:
        raise _wrong(where, f"at most {limit:,} long", f"{len(found):,} long")
    return found


def _shape(found: object, where: str) -> tuple[int, ...]:
    sizes = _list(found, MAX_DIMENSIONS, f"{where}.shape")
    shape = tuple(size for size in sizes if _natural(size) and size <= MAX_NUMBERS)
    if len(shape) != len(sizes):
        raise _wrong(f"{where}.shape", f"of whole numbers up to {MAX_NUMBERS:,}", found)
    return shape


def _name(found: object, where: str) -> str:
    if not isinstance(found, str) or not 0 < len(found) <= _MAX_NAME or found == "__metadata__":
        raise _wrong(where, f"a name of 1 to {_MAX_NAME} characters", found)
    return found


def _check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(f"the description of a target names {printable(name)} twice", _HINT)
        seen.add(name)


def _natural(found: object) -> TypeGuard[int]:
    return type(found) is int and found >= 0


def _finite(found: object) -> TypeGuard[float]:
    return isinstance(found, int | float) and not isinstance(found, bool) and -1e300 < found < 1e300


def _wrong(where: str, wanted: str, found: object) -> InvalidInput:
    return InvalidInput(f"the description of a target: {where} is not {wanted}: {printable(found)}", _HINT)
