"""The network that weights are generated for: which tensors, of what shape, what each is for, which are one tensor."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from paramsmith.errors import InvalidInput, printable

from .graph import Graph

Role = Literal["matrix", "kernel", "embedding", "position", "head", "bias", "norm_scale", "norm_shift"]
MAX_NUMBERS = 10**12  # that a target may have


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor to generate.

    `fan_in`: how many inputs one output sums over (that of its layer for a bias, 1 where nothing is summed). `std`:
    the standard deviation that the architecture's own initialisation gives, None where unknown. `class_axis`: the
    axis with one entry a class. `copies`: further names under which a checkpoint holds the same tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: F32
    role: Role
    fan_in: int
    std: float | None = None
    class_axis: int | None = None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Buffer:
    """A persistent tensor that is not generated: filled with `fill`, or, where that is None, the target's own."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fill: float | None


@dataclass(frozen=True, eq=False)
class TargetSpec:
    """All tensors of a target, in the order of the module.

    Two are equal when names and shapes are, in this order, whatever roles, types, graph and config.
    """

    slots: tuple[Slot, ...]
    buffers: tuple[Buffer, ...] = ()
    graph: Graph | None = None
    config: Mapping[str, object] | None = None  # config.json, kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TargetSpec) and self._shapes == other._shapes

    def __hash__(self) -> int:
        return hash(self._shapes)

    @cached_property
    def _shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((slot.name, slot.shape) for slot in self.slots)

    @cached_property
    def hash(self) -> str:
        """sha256 over names and shapes, in any order: equal hashes, interchangeable weights."""
        told = sorted([slot.name, list(slot.shape)] for slot in self.slots)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The slots of equal shape, role and class axis, which are decoded together: their numbers, group by group."""
        found: dict[object, list[int]] = {}
        for number, slot in enumerate(self.slots):
            found.setdefault((slot.shape, slot.role, slot.class_axis), []).append(number)
        return tuple(map(tuple, found.values()))

    @property
    def classes(self) -> int | None:
        """How many classes its head tells apart; None where no layer is known to be its head."""
        return next((slot.shape[slot.class_axis] for slot in self.slots if slot.class_axis is not None), None)

    def with_classes(self, classes: int) -> TargetSpec:
        """The same target for another number of classes. InvalidInput where it has no head that could have them."""
        if classes < 1:
            raise InvalidInput(f"a target cannot have {classes} classes", "give 1 or more")
        if all(slot.class_axis is None for slot in self.slots):
            raise InvalidInput("no layer of the target is known to be its head", "say how many classes it has now")

        def resized(slot: Slot) -> Slot:
            if slot.class_axis is None:
                return slot
            shape = list(slot.shape)
            shape[slot.class_axis] = classes
            return replace(slot, shape=tuple(shape))

        slots = tuple(map(resized, self.slots))
        check_sizes({slot.name: slot.shape for slot in slots})
        return replace(self, slots=slots, graph=self.graph and _reshaped(self.graph, self.slots, slots))


def check_sizes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """InvalidInput for a target of no tensors, of empty ones, or of more than MAX_NUMBERS numbers."""
    if not shapes:
        raise InvalidInput("the target has no parameters to generate", "give a module or a checkpoint that has some")
    empty = next((name for name, shape in shapes.items() if 0 in shape), None)
    if empty is not None:
        raise InvalidInput(f"{printable(empty)}: has no elements: {list(shapes[empty])}", "leave it out of the target")
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > MAX_NUMBERS:
        fact = f"the target has {printable(f'{total:,}')} numbers; at most {MAX_NUMBERS:,} are generated"
        raise InvalidInput(fact, "check the sizes of its layers")


def _reshaped(graph: Graph, before: tuple[Slot, ...], after: tuple[Slot, ...]) -> Graph:
    """The graph with the shapes of the tensors that changed."""
    nodes = list(graph.nodes)
    for place, old, new in zip(graph.node_of, before, after, strict=True):
        if nodes[place].shape == old.shape:
            nodes[place] = replace(nodes[place], shape=new.shape)
    return replace(graph, nodes=tuple(nodes))
