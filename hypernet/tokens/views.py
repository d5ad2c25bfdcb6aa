"""Other ways to write the same network, taken before it is cut: tensors (B, *shape) by name to tensors.

gauge      minus the mean over classes, of a head's rows and biases: softmax is left as it is, and so is the inverse
lora_svd   low rank pairs B A as U sqrt(S), sqrt(S) V': one of all the pairs of this product; the inverse is left too
log_var    log of running variances; one below 1e-8, of a unit that is silent, counts as that
svd        matrices but a head's as their components, (B, k, out + 1 + in) each: see `components`
delta      minus a base

All are computed in fp64 and rounded once, to fp32 for tensors of half precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.targets.target import Slot

from .components import components, composed, has_components

View: TypeAlias = Literal["gauge", "log_var", "delta", "lora_svd", "svd"]
_LEAST = 1e-8  # far below what norms add to a variance
_UP = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B", "lora_down": "lora_up"}


def viewed(
    tensors: Mapping[str, Tensor], slots: Sequence[Slot], views: Sequence[View], rank: int | None = None
) -> dict[str, Tensor]:
    """All views that are asked for but `delta`, in one order. InvalidInput, naming it, for a variance below 0."""
    made = dict(tensors)
    if "lora_svd" in views:
        for down, up in lora_pairs(slots):
            made[up], made[down] = canonical_pair(made[up], made[down])
    for slot in slots:
        if "gauge" in views and slot.class_axis is not None:
            made[slot.name] = without_class_mean(made[slot.name], slot.class_axis)
        if "log_var" in views and _is_variance(slot):
            made[slot.name] = _logarithm(made[slot.name], slot)
        if "svd" in views and has_components(slot):
            made[slot.name] = components(made[slot.name], slot, rank)
    return made


def unviewed(tensor: Tensor, slot: Slot, views: Sequence[View]) -> Tensor:
    """The inverse of `viewed`, tensor by tensor; of a rank that is not full, what it left of it."""
    if "svd" in views and has_components(slot):
        return composed(tensor, slot)
    return tensor.double().exp() if "log_var" in views and _is_variance(slot) else tensor


def without_class_mean(tensor: Tensor, class_axis: int) -> Tensor:
    """x_c - mean over c. One class, whose output no softmax sees, is left alone.

    >>> without_class_mean(torch.tensor([[1.0, 3.0]]), 0)
    tensor([[-1.,  1.]])
    """
    if tensor.shape[class_axis + 1] == 1:
        return tensor
    wide = tensor.double()
    return (wide - wide.mean(class_axis + 1, keepdim=True)).to(_wide(tensor))


def canonical_pair(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """B (n, out, r, ...) and A (n, r, in, ...) with the same product, which decides them: U sqrt(S) and sqrt(S) V'.

    Singular values fall; the entry of largest size in each column of U is above 0. Of Q R = B, Q' R' = A', the core
    R R'' is r x r, and its SVD is all that is needed:  B A = Q (R R'') Q''.  Equal singular values leave a freedom.
    """
    b, a = up.double().flatten(2), down.double().flatten(2)  # (n, out, r), (n, r, in)
    rank = b.shape[2]
    left, r_left = torch.linalg.qr(b)
    right, r_right = torch.linalg.qr(a.mT)
    u, s, v = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    u, v = left @ u, v @ right.mT  # (n, out, k), (n, k, in), where k is r, or less in a matrix that is smaller
    largest = u.gather(1, u.abs().argmax(1, keepdim=True))  # (n, 1, k)
    sign = torch.where(largest < 0, -1.0, 1.0)
    root = s.sqrt()
    missing = rank - s.shape[1]
    made_b = torch.nn.functional.pad(u * sign * root[:, None], (0, missing))
    made_a = torch.nn.functional.pad(v * sign.mT * root[:, :, None], (0, 0, 0, missing))
    return made_b.to(_wide(up)).view(up.shape), made_a.to(_wide(down)).view(down.shape)


def lora_pairs(slots: Sequence[Slot]) -> Iterator[tuple[str, str]]:
    """(A, B) by name: x.lora_A.weight (r, in) and x.lora_B.weight (out, r), lora_down and lora_up."""
    shapes = {slot.name: slot.shape for slot in slots}
    for name, shape in shapes.items():
        parts = name.split(".")
        other = ".".join(_UP.get(part, part) for part in parts)
        if other == name or other not in shapes or len(shape) < 2:
            continue
        above = shapes[other]
        if len(above) >= 2 and above[1] == shape[0] and all(size == 1 for size in above[2:]):
            yield name, other


def _is_variance(slot: Slot) -> bool:
    return slot.name.rpartition(".")[2] == "running_var"


def _logarithm(tensor: Tensor, slot: Slot) -> Tensor:
    if not bool((tensor >= 0).all()):
        raise InvalidInput(f"tensor {printable(slot.name)} holds a variance below 0", "leave this network out")
    return tensor.double().clamp_min(_LEAST).log().to(_wide(tensor))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
