"""Matrices by their singular value decomposition, a row a component, so that a token can be one.

    W = sum_i s_i u_i v_i',   row i = (u_i, sqrt(s_i), v_i),   s falling

The entry of largest size in each u_i is above 0, which leaves no choice of sign; equal singular values leave one of
basis, which their sum does not see. A component of rounding alone, such as all of a matrix of zeros, is a row of zeros.
Kernels are matrices of (out, the rest). All in fp64, rounded once.

Knowledge Integration and Diversion in Diffusion Models, arXiv:2408.07337, learns such components: those that tasks
share, and those of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from paramsmith.hypernet.targets.target import Slot, TargetSpec

_ROLES = ("matrix", "kernel", "embedding", "position")


def has_components(slot: Slot) -> bool:
    """Whether a tensor is a matrix, none of whose axes is that of classes."""
    return slot.role in _ROLES and slot.class_axis is None and len(slot.shape) > 1


def as_components(slot: Slot, rank: int | None = None) -> Slot:
    """The slot of the components of a matrix: (k, out + 1 + in), with k at most `rank`.

    >>> as_components(Slot("w", (8, 3, 3, 3), "F32", "kernel", 27), 4).shape
    (4, 36)
    """
    if not has_components(slot):
        return slot
    out, inputs = _sizes(slot)
    return replace(slot, shape=(_count(slot, rank), out + 1 + inputs), std=None)


def of_components(spec: TargetSpec, rank: int | None = None) -> TargetSpec:
    """The target with its matrices as components, without its buffers and its graph."""
    return TargetSpec(tuple(as_components(slot, rank) for slot in spec.slots))


def components(tensor: Tensor, slot: Slot, rank: int | None = None) -> Tensor:
    """(B, *shape) -> (B, k, out + 1 + in). No gradient passes: near equal singular values it has no bound."""
    out, inputs = _sizes(slot)
    matrix, count = tensor.detach().reshape(len(tensor), out, inputs).double(), _count(slot, rank)
    u, s, v = (part[..., :count] for part in _svd(matrix))  # (B, out, k), (B, k), (B, in, k)
    largest = u.gather(1, u.abs().argmax(1, keepdim=True))  # (B, 1, k)
    sign = torch.where(largest < 0, -1.0, 1.0)
    rounding = max(out, inputs) * torch.finfo(torch.float64).eps * s[:, :1]
    there = (s > rounding)[:, None]  # (B, 1, k)
    made = torch.cat([u * sign, s[:, None].sqrt(), v * sign], 1) * there
    return made.mT.to(torch.promote_types(tensor.dtype, torch.float32))


def composed(rows: Tensor, slot: Slot) -> Tensor:
    """(B, k, out + 1 + in) -> (B, *shape): the sum of the components, fp64."""
    out, _ = _sizes(slot)
    wide = rows.double()
    left, right = wide[..., :out] * wide[..., out, None].square(), wide[..., out + 1 :]
    return (left.mT @ right).reshape(len(rows), *slot.shape)


def energy(tensors: Mapping[str, Tensor], rows: Mapping[str, Tensor], slots: Iterable[Slot]) -> tuple[float, float]:
    """The sum of squares of the matrices, and that of the singular values that their components (`rows`) kept."""
    whole = kept = 0.0
    for slot in filter(has_components, slots):
        whole += float(tensors[slot.name].double().square().sum())
        kept += float(rows[slot.name][..., slot.shape[0]].double().pow(4).sum())  # they hold sqrt(s)
    return whole, kept


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, out, k), S (B, k), V (B, in, k)."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh.mT


def _sizes(slot: Slot) -> tuple[int, int]:
    return slot.shape[0], prod(slot.shape[1:])


def _count(slot: Slot, rank: int | None) -> int:
    return min(*_sizes(slot), *([] if rank is None else [rank]))
