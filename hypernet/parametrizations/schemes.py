"""How tensors begin without any generator: torch's own initialisation by role, and named schemes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.hypernet.seeding import Device, normal, uniform
from paramsmith.hypernet.targets.rolenames import uniform_std
from paramsmith.hypernet.targets.target import Slot

Scheme = Literal["default", "orthogonal", "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform"]

LAYERS = ("matrix", "kernel", "head")
NORMS = ("norm_scale", "norm_shift")
TABLES = {"embedding": 1.0, "position": 0.02}  # standard deviations


def centre(slot: Slot) -> float:
    """What a tensor is drawn around: 1 for the scale of a norm, else 0."""
    return 1.0 if slot.role == "norm_scale" else 0.0


def spread(slot: Slot) -> float:
    """The standard deviation of a tensor's own initialisation: what the slot says, else torch's for its role.

    1/sqrt(3 fan_in) for matrices, kernels, heads and biases, 1 for embeddings, 0.02 for positions, 0 for norms.

    >>> spread(Slot("fc.weight", (4, 12), "F32", "matrix", fan_in=12))
    0.16666666666666666
    """
    if slot.std is not None:
        return slot.std
    if slot.role in NORMS:
        return 0.0
    return TABLES.get(slot.role) or uniform_std(slot.fan_in)


def drawn(slot: Slot, seed: int, key: str, scheme: Scheme = "default", device: Device = "cpu") -> Tensor:
    """One draw of a tensor, (*shape), by (seed, key) alone: the corner of the same draw for a wider target, rescaled.

    default: as torch does, U for layers and their biases, N for tables, norms 1 and 0. The other schemes are for
    matrices, kernels and heads, whose biases are then 0: N or U of variance 2/fan_in (kaiming) or
    2/(fan_in + fan_out) (xavier); orthogonal: rows or columns, whichever are fewer, orthonormal (no corner).
    """
    bound = math.sqrt(3)
    if slot.role in TABLES:
        return normal(seed, key, slot.shape, spread(slot), device=device)
    if slot.role in NORMS:
        return torch.full(slot.shape, centre(slot), device=device)
    if scheme == "default":
        return uniform(seed, key, slot.shape, bound * spread(slot), device=device)
    if slot.role == "bias":
        return torch.zeros(slot.shape, device=device)
    if scheme == "orthogonal":
        return _orthogonal(slot, seed, key, device)
    fan_in = max(1, slot.fan_in)
    fan_out = slot.shape[0] * math.prod(slot.shape[2:]) if len(slot.shape) > 1 else 1
    std = math.sqrt(2 / (fan_in if scheme.startswith("kaiming") else fan_in + fan_out))
    if scheme.endswith("normal"):
        return normal(seed, key, slot.shape, std, device=device)
    return uniform(seed, key, slot.shape, bound * std, device=device)


def _orthogonal(slot: Slot, seed: int, key: str, device: Device) -> Tensor:
    """The orthonormal factor of a normal draw, (rows, all the rest), with the signs that make it unique."""
    rows = slot.shape[0] if slot.shape else 1
    matrix = normal(seed, key, slot.shape).reshape(rows, math.prod(slot.shape[1:]))
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    with one_thread_an_operation():  # another number of threads, other last bits
        q, r = torch.linalg.qr(tall)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    found: Tensor = q if tall is matrix else q.T
    return found.reshape(slot.shape).to(device)
