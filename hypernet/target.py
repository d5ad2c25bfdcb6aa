"""The network that weights are generated for: which tensors, of what shape, what each is for, which are one tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from .graph import Graph

Role = Literal["matrix", "kernel", "embedding", "position", "head", "bias", "norm_scale", "norm_shift"]


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


@dataclass(frozen=True)
class TargetSpec:
    """All tensors of a target, in the order of the module; equal when names and shapes are, whatever the graph."""

    slots: tuple[Slot, ...]
    buffers: tuple[Buffer, ...] = ()
    graph: Graph | None = field(default=None, compare=False)
    config: Mapping[str, object] | None = field(default=None, compare=False)  # config.json, kept

    @cached_property
    def hash(self) -> str:
        """sha256 over names and shapes: equal hashes, interchangeable weights."""
        told = [[slot.name, list(slot.shape)] for slot in self.slots]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The slots of equal shape, role and class axis, which are decoded together: their numbers, group by group."""
        found: dict[object, list[int]] = {}
        for number, slot in enumerate(self.slots):
            found.setdefault((slot.shape, slot.role, slot.class_axis), []).append(number)
        return tuple(map(tuple, found.values()))

    def with_classes(self, classes: int) -> TargetSpec:
        """The same target for another number of classes."""

        def resized(slot: Slot) -> Slot:
            if slot.class_axis is None:
                return slot
            shape = list(slot.shape)
            shape[slot.class_axis] = classes
            return replace(slot, shape=tuple(shape))

        return replace(self, slots=tuple(map(resized, self.slots)))
