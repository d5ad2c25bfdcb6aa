"""Tensors of any number of axes as the kernels (out, in, kh, kw) that decoders make, and what a decoder may hold."""

from __future__ import annotations

from math import prod

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.target import Slot

MOST = 10**10  # numbers in one decoder: 40 GB; far more than a mistyped width should be allowed to ask for


def kernel_shape(slot: Slot) -> tuple[int, int, int, int] | None:
    """A tensor as (out, in, kh, kw), or None for a vector: one axis, or a bias or norm with one longer than 1.

    A matrix (o, i) is (o, i, 1, 1); of four axes it is what it says; a kernel (o, i, k) is (o, i, 1, k), and of five
    axes or more (o, i, k, the others); any other is a matrix whose rows are all axes but the last, so that positions
    (1, T, D) are (T, D).

    >>> kernel_shape(Slot("conv", (8, 3, 5, 7), "F32", "kernel", 105))
    (8, 3, 5, 7)
    >>> kernel_shape(Slot("places", (1, 50, 16), "F32", "position", 1))
    (50, 16, 1, 1)
    >>> kernel_shape(Slot("gamma", (64, 1, 1), "F32", "norm_scale", 1)) is None
    True
    """
    shape = slot.shape
    plain = slot.role in ("norm_scale", "norm_shift", "bias")
    if len(shape) < 2 or (plain and sum(size > 1 for size in shape) < 2):
        return None
    if len(shape) == 4 or (len(shape) > 2 and slot.role == "kernel"):
        out, into, *sides = shape
        return (out, into, sides[0], prod(sides[1:])) if len(sides) > 1 else (out, into, 1, sides[0])
    return prod(shape[:-1]), shape[-1], 1, 1


def second(slot: Slot) -> bool:
    """Whether a vector is the second of the two that one code stands for: norm scales are the first, biases this."""
    return slot.role in ("bias", "norm_shift")


def affordable(numbers: int, what: str) -> None:
    """InvalidInput where a decoder would hold more than MOST numbers; to be called before any is made."""
    if numbers > MOST:
        hint = "a smaller width, or another decoder: chunked, lowrank"
        raise InvalidInput(f"{what} would hold {numbers:,} numbers; the most is {MOST:,}", hint)
