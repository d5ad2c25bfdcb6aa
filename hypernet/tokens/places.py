"""What is known of each token of a layout: features, the class, the tensor.

Features, about 1 in size:

    role of the tensor, one-hot; its depth, 0 to 1; log2 of its rows and columns, over 16; share of the token that is
    no padding; sinusoids of the number of the tensor, of the row, and of the piece of the row

Where rows are classes nothing tells one from another, nor how many there are: the row counts as 0, and so do the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod
from typing import get_args

import torch
from torch import Tensor

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.targets.target import Role, Slot

from .segments import PADDING, Block, Cut

_ROLES = get_args(Role)
_RATES = (1.0, 0.05, 0.0025, 0.000125)  # of sinusoids: from a few neighbours to tens of thousands
_TOLD = len(_ROLES) + 3 + 2 * len(_RATES)  # of a tensor
FEATURES = _TOLD + 1 + 4 * len(_RATES)


def places_of(slots: Sequence[Slot], cut: Cut, own: int) -> Places:
    """The places of N tokens of U numbers and `own` more that each has of its own."""
    count, width = cut.count, cut.width
    mask = torch.zeros(count * width, dtype=torch.bool)
    for segment in cut.segments:
        if segment.slot != PADDING:
            extents, strides = [e for e, _, _ in segment.axes], [t for _, _, t in segment.axes]
            mask.as_strided(extents, strides, segment.at).fill_(True)
    mask = mask.view(count, width)
    classes, numbers = torch.full((2, count), -1, dtype=torch.int64).unbind()
    features = torch.zeros(count, FEATURES)
    told = torch.tensor([_told(number, slots) for number in range(len(slots))])
    rows, pieces = torch.zeros(2, count, dtype=torch.int64).unbind()
    for block in cut.blocks:
        _fill(block, told, features, classes, numbers, rows, pieces)
    features[:, _TOLD] = mask.sum(1) / width
    features[:, _TOLD + 1 :] = torch.cat([_waves(rows), _waves(pieces)], 1)
    own_mask = torch.ones(count, own, dtype=torch.bool)
    return Places(features, classes, numbers, torch.cat([mask, own_mask], 1) if own else mask)


def _fill(
    block: Block, told: Tensor, features: Tensor, classes: Tensor, numbers: Tensor, rows: Tensor, pieces: Tensor
) -> None:
    here = slice(block.first, block.first + block.rows * block.across)
    row = torch.arange(block.rows).repeat_interleave(block.across)
    features[here, :_TOLD] = sum((told[number] * share for number, share in block.members), torch.zeros(_TOLD))
    pieces[here] = torch.arange(block.across).repeat(block.rows)
    numbers[here] = block.slot
    if block.by_class:
        classes[here] = row
    else:
        rows[here] = row + block.row


def _told(number: int, slots: Sequence[Slot]) -> list[float]:
    """What is told of a tensor: the same whatever the number of classes."""
    slot = slots[number]
    shape = [size for axis, size in enumerate(slot.shape) if axis != slot.class_axis]
    rows = shape[0] if slot.class_axis is None and len(shape) > 1 else 1
    sizes = [log2(rows) / 16, log2(prod(shape) / rows) / 16]
    depth = number / max(1, len(slots) - 1)
    waves: list[float] = _waves(torch.tensor([number], device="cpu"))[0].tolist()
    return [float(slot.role == role) for role in _ROLES] + [depth, *sizes] + waves


def _waves(numbers: Tensor) -> Tensor:
    """(L,) -> (L, 8)."""
    angles = numbers[:, None].double() * torch.tensor(_RATES, dtype=torch.float64, device=numbers.device)
    return torch.cat([angles.sin(), angles.cos()], 1).float()
