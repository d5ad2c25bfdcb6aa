"""How each kind of layout cuts a target: which numbers stand in which token.

flat      all tensors as one stream, in tokens of T
tensor    each tensor by itself
row       each row of outputs (of a kernel: each channel) with its bias as the last number; a class is a row
patch     tiles of a matrix, which is turned where its columns are the few: those of low rank factors
neuron    of layers one after the other: a unit's incoming row, its bias and further numbers, its outgoing column
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Literal, TypeAlias

from paramsmith.hypernet.targets.target import Slot, TargetSpec

from .segments import PADDING, Block, Cut, Part

Kind: TypeAlias = Literal["flat", "tensor", "row", "patch", "neuron"]
Numbered: TypeAlias = Sequence[tuple[int, Slot]]  # slots to cut, with their numbers in the spec
TILE = (8, 128)
MOST = 512  # numbers in a token, unless asked for
_WEIGHTS = ("matrix", "kernel", "head")


def cut(spec: TargetSpec, kind: Kind, width: int, names: Sequence[str], tile: tuple[int, int] = TILE) -> Cut:
    """The map of a layout: `width` numbers a token, of the slots that are named."""
    made, slots = Cut(width), _numbered(spec, names)
    if kind == "flat":
        _flat(made, slots)
    elif kind == "tensor":
        for number, slot in slots:
            made.rows(1, [_all(number, slot)], number)
    elif kind == "patch":
        for number, slot in slots:
            _patch(made, number, slot, tile)
    else:
        _rows(made, slots, _links(slots) if kind == "neuron" else {})
    return made


def natural_width(spec: TargetSpec, kind: Kind, names: Sequence[str], tile: tuple[int, int] = TILE) -> int:
    """T where none is asked for: the longest row of a weight, at most MOST; the numbers of a tile; else MOST."""
    if kind == "patch":
        return prod(tile)
    if kind in ("flat", "tensor"):
        return MOST
    slots = _numbered(spec, names)
    longest = Cut(1)  # with tokens of one number, a block is as far across as its rows are long
    _rows(longest, slots, _links(slots) if kind == "neuron" else {}, always=True)
    held = dict(slots)
    weights = [b.across for b in longest.blocks if b.rows > 1 or _is_weight(held[b.members[0][0]])]
    return min(MOST, max(weights or [block.across for block in longest.blocks]))


def _numbered(spec: TargetSpec, names: Sequence[str]) -> list[tuple[int, Slot]]:
    wanted = set(names)
    return [(number, slot) for number, slot in enumerate(spec.slots) if slot.name in wanted]


def _all(number: int, slot: Slot) -> Part:
    return Part(number, 0, ((prod(slot.shape), 1),))


def _flat(made: Cut, slots: Numbered) -> None:
    """One row of everything; the tokens at the seams are of several tensors."""
    made.rows(1, [_all(number, slot) for number, slot in slots], PADDING)
    made.blocks.clear()
    seams: dict[int, list[tuple[int, int]]] = {}
    place, width = 0, made.width
    for number, slot in slots:
        stop = place + prod(slot.shape)
        first, last = -(-place // width), stop // width  # whole tokens: first to last
        if first < last:
            made.blocks.append(Block(number, first, last - first, 1, ((number, 1.0),), first))
        for token in {place // width, (stop - 1) // width}:
            if not first <= token < last:
                held = min(stop, (token + 1) * width) - max(place, token * width)
                seams.setdefault(token, []).append((number, held))
        place = stop
    for token, members in seams.items():
        total = sum(held for _, held in members)
        shares = tuple((number, held / total) for number, held in members)
        made.blocks.append(Block(members[0][0] if len(members) == 1 else PADDING, token, 1, 1, shares, token))


def _patch(made: Cut, number: int, slot: Slot, tile: tuple[int, int]) -> None:
    if len(slot.shape) < 2:
        made.rows(1, [_all(number, slot)], number)
        return
    height, length = slot.shape[0], prod(slot.shape[1:])
    rows, cols = (height, length), (length, 1)
    turned = length <= tile[0] and height > length
    made.tiles(number, *((cols, rows) if turned else (rows, cols)), tile)


def _rows(made: Cut, slots: Numbered, links: Mapping[int, int], *, always: bool = False) -> None:
    """Weights row by row. `links`: the weight whose columns stand behind a weight's rows. `always`: with any bias."""
    held, beside, followed = dict(slots), _vectors(slots, links), set(links.values())
    for number in list(beside):
        rows, own = _matrix(number, held[number])
        fits = always or held[number].class_axis is not None or own.size % made.width != 0
        if number not in links and (number in followed or not fits):
            del beside[number]
    ridden = {other for vectors in beside.values() for other in vectors}
    for number, slot in slots:
        by_class = slot.class_axis is not None
        if not _is_weight(slot):
            if number not in ridden:
                rows, own = _matrix(number, slot) if by_class else (1, _all(number, slot))
                made.rows(rows, [own], number, by_class=by_class)
            continue
        rows, own = _matrix(number, slot)
        parts = [] if number in followed else [own]
        parts += [Part(other, 1, ((1, 1),)) for other in beside.get(number, ())]
        if number in links:
            parts.append(_columns(links[number], held[links[number]]))
        if parts:
            made.rows(rows, parts, PADDING if number in links else number, by_class=by_class)


def _is_weight(slot: Slot) -> bool:
    return len(slot.shape) > 1


def _matrix(number: int, slot: Slot) -> tuple[int, Part]:
    """A tensor as rows: along its axis of classes, if it has one, else along the first."""
    axis = slot.class_axis or 0
    before, rows, after = prod(slot.shape[:axis]), slot.shape[axis], prod(slot.shape[axis + 1 :])
    return rows, Part(number, after, ((before, rows * after), (after, 1)))


def _columns(number: int, slot: Slot) -> Part:
    """Of the inputs of a weight (out, in, ...): one a row."""
    out, inputs, inner = slot.shape[0], slot.shape[1], prod(slot.shape[2:])
    return Part(number, inner, ((out, inputs * inner), (inner, 1)))


def _vectors(slots: Numbered, links: Mapping[int, int]) -> dict[int, list[int]]:
    """By weight, the vectors with one number a row: its bias; of a linked one, all up to the next weight too."""
    numbers, by_number = {slot.name: number for number, slot in slots}, dict(slots)
    found: dict[int, list[int]] = {number: [] for number, slot in slots if _is_weight(slot)}
    last: tuple[int, Slot] | None = None
    for number, slot in slots:
        if _is_weight(slot):
            last = number, slot
            continue
        owner = numbers.get(f"{slot.name.removesuffix('bias')}weight") if slot.name.endswith("bias") else None
        if owner is not None and owner in found:
            held = by_number[owner]
        elif last is not None and last[0] in links:
            owner, held = last
        else:
            continue
        if _is_beside(slot, held):
            found[owner].append(number)
    return {number: vectors for number, vectors in found.items() if vectors}


def _is_beside(vector: Slot, weight: Slot) -> bool:
    rows = weight.shape[weight.class_axis or 0]
    return vector.shape == (rows,) and (vector.class_axis is None) == (weight.class_axis is None)


def _links(slots: Numbered) -> dict[int, int]:
    """Weights whose outputs are the inputs of the next one: {its number: that of the next}."""
    weights = [(number, slot) for number, slot in slots if _is_weight(slot) and slot.role in _WEIGHTS]
    pairs = pairwise(weights)
    return {n: m for (n, one), (m, other) in pairs if one.class_axis is None and _reads(other, one)}


def _reads(other: Slot, one: Slot) -> bool:
    return other.class_axis in (None, 0) and other.shape[1] == one.shape[0]
