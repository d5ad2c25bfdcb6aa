"""The map from the numbers of tensors to the numbers of tokens, as affine segments: a few numbers a tensor.

A segment of extents e and steps s, t takes number `start + sum i_a s_a` of its tensor to number `at + sum i_a t_a` of
the N U numbers of all tokens, for 0 <= i_a < e_a. Of all segments together, those of padding included, every number of
every tensor has one place, and every place one segment; nothing is stored a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

Axis: TypeAlias = tuple[int, int, int]  # extent, step in the tensor, step in the tokens
PADDING = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """`slot` is the number of the tensor among the slots of the spec; PADDING: zeros."""

    slot: int
    start: int
    at: int
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return prod(extent for extent, _, _ in self.axes)

    def is_whole(self, numbers: int) -> bool:
        """Whether it has all numbers of its tensor in their order, so that it can be a view of the tokens."""
        wanted = 1
        for extent, step, _ in reversed(self.axes):
            if step != wanted:
                return False
            wanted *= extent
        return self.start == 0 and wanted == numbers


@dataclass(frozen=True, slots=True)
class Part:
    """What every row has of one tensor: row i begins at number i `step`, and runs over axes (extent, step)."""

    slot: int
    step: int
    axes: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many numbers a row has of it."""
        return prod(extent for extent, _ in self.axes)


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` x `across` tokens from token `first` on, of the tensor `slot`, or -1 where each is of several.

    `row`: the number of the first row. `by_class`: a row is a class. `members`: (slot, share), what they are told of.
    """

    slot: int
    first: int
    rows: int
    across: int
    members: tuple[tuple[int, float], ...]
    row: int = 0
    by_class: bool = False


@dataclass
class Cut:
    """Segments and blocks of tokens of `width` numbers, as they are added; `count` is how many tokens there are."""

    width: int
    segments: list[Segment] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    count: int = 0

    def rows(self, rows: int, parts: Sequence[Part], slot: int, *, by_class: bool = False) -> None:
        """A row is all parts, one after the other, in as many tokens as that takes, the last one padded."""
        length, place = sum(part.size for part in parts), self.count * self.width
        across = -(-length // self.width)
        stride, tail = across * self.width, across * self.width - length
        for part in parts:
            axes, step = [], 1
            for extent, inner in reversed(part.axes):
                axes.append((extent, inner, step))
                step *= extent
            self._add(part.slot, 0, place, [(rows, part.step, stride), *reversed(axes)])
            place += part.size
        if tail:
            self._add(PADDING, 0, place, [(rows, 0, stride), (tail, 0, 1)])
        owner = parts[0].slot if slot == PADDING else slot
        self.blocks.append(Block(slot, self.count, rows, across, ((owner, 1.0),), by_class=by_class))
        self.count += rows * across

    def tiles(self, slot: int, rows: tuple[int, int], cols: tuple[int, int], tile: tuple[int, int]) -> None:
        """Tiles (r, c) of a matrix with `rows` and `cols`, (extent, step) each: row by row, the edges padded."""
        (height, down), (length, right), (r, c) = rows, cols, tile
        deep, wide = -(-height // r), -(-length // c)
        origin, size = self.count * self.width, r * c
        for row, (tall, r_used) in enumerate(_pieces(height, r)):
            top = (height // r) * row  # the second piece is below all whole tiles
            for col, (many, c_used) in enumerate(_pieces(length, c)):
                left = (length // c) * col
                axes = [(tall, r * down, wide * size), (r_used, down, c), (many, c * right, size), (c_used, right, 1)]
                start = top * r * down + left * c * right
                if tall and many:
                    self._add(slot, start, origin + (top * wide + left) * size, axes)
        low, far = height % r, length % c
        if far:
            last = origin + (wide - 1) * size
            self._add(PADDING, 0, last + far, [(deep, 0, wide * size), (r, 0, c), (c - far, 0, 1)])
        if low:
            bottom = origin + (deep - 1) * wide * size + low * c
            self._add(PADDING, 0, bottom, [(length // c, 0, size), ((r - low) * c, 0, 1)])
            if far:
                self._add(PADDING, 0, bottom + (wide - 1) * size, [(r - low, 0, c), (far, 0, 1)])
        self.blocks.append(Block(slot, self.count, deep, wide, ((slot, 1.0),)))
        self.count += deep * wide

    def _add(self, slot: int, start: int, at: int, axes: Sequence[Axis]) -> None:
        if all(extent for extent, _, _ in axes):
            self.segments.append(Segment(slot, start, at, _simplified(axes)))


def _pieces(length: int, size: int) -> tuple[tuple[int, int], ...]:
    """(how many, of what size): the whole pieces, and the rest."""
    return ((length // size, size), (1 if length % size else 0, length % size))


def _simplified(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The same without axes of extent 1, and with neighbours joined that are one axis."""
    made: list[Axis] = []
    for extent, step, stride in axes:
        if extent == 1:
            continue
        if made and made[-1][1:] == (extent * step, extent * stride):
            made[-1] = (made[-1][0] * extent, step, stride)
        else:
            made.append((extent, step, stride))
    return tuple(made)
