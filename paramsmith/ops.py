"""The batched primitives methods are made of: pure functions on blocks (models, n), fit for a fused kernel.

Masks are floats, 1 or 0: kernels vectorize them, where stored booleans are slow.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Election: TypeAlias = Literal["native", "mergekit", "peft"]
Majority: TypeAlias = Literal["total", "frequency"]


def keep(condition: Tensor, values: Tensor) -> Tensor:
    """The values where the condition holds, 0 elsewhere."""
    if torch.compiler.is_compiling():
        return torch.where(condition, values, torch.zeros((), dtype=values.dtype, device=values.device))
    # outside a kernel, torch.where takes ten times as long as masking the bits
    words = torch.int32 if values.dtype.itemsize == 4 else torch.int64
    return (values.view(words) & -condition.to(words)).view(values.dtype)


def ones_where(condition: Tensor, like: Tensor) -> Tensor:
    """1 where the condition holds, 0 elsewhere, in the dtype of `like`."""
    return keep(condition, torch.ones((), dtype=like.dtype, device=like.device))


def known(values: Tensor, instead: float = 0.0) -> Tensor:
    """The values, and `instead` for NaN: so that a NaN spoils its own element and not a survey of the whole model."""
    if torch.compiler.is_compiling():
        return torch.where(values == values, values, instead)
    return values.nan_to_num(nan=instead, posinf=torch.inf, neginf=-torch.inf)


def trim(deltas: Tensor, threshold: Tensor) -> Tensor:
    """The entries of at least the threshold's magnitude, 0 elsewhere: (models, n) and (models, 1) -> (models, n).

    >>> trim(torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[2.0]])).tolist()
    [[3.0, 0.0, 2.0]]
    """
    return keep(deltas.abs() >= threshold, deltas)


def or_one(divisor: Tensor, floor: float = 0.0) -> Tensor:
    """The divisor, 1 where its magnitude does not exceed the floor."""
    return divisor + ones_where(divisor.abs() <= floor, divisor)


def weighted_sum(deltas: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    """sum_i w_i d_i, divided by sum_i w_i when asked and unless that is nearly 0: (models, n) -> (n)."""
    total = (weight * deltas).sum(0)
    return total / or_one(weight.sum(0), 1e-8) if normalize else total


def votes(kept: Tensor, majority: Majority) -> Tensor:
    """What elects a sign for each element: the total of the entries, or of their signs: (models, n) -> (n)."""
    return (kept if majority == "total" else torch.sign(kept)).sum(0)


def elected_sum(kept: Tensor, weight: Tensor, rule: Election, normalize: bool, majority: Majority = "total") -> Tensor:
    """Elect a sign for each element, then sum what agrees with it: (models, n) -> (n).

    - native: the sign of sum_i k_i, no sign where that is 0; divided by the agreeing weights.
    - mergekit: weights first, the sign of sum_i w_i k_i, + where that is 0; divided by the agreeing weights.
    - peft: the sign of sum_i k_i, + where that is 0; divided by the number agreeing.

    With majority `frequency` each entry's sign counts instead of its value.

    >>> k = torch.tensor([[1.0, 2.0], [3.0, -5.0]])
    >>> elected_sum(k, torch.ones(2, 1), "native", True).tolist()
    [2.0, -5.0]
    """
    voting = weight * kept if rule == "mergekit" else kept
    total = votes(voting, majority)
    elected = torch.sign(total) if rule == "native" else 2 * ones_where(total >= 0, kept) - 1
    agreeing = (voting * elected).clamp_min(0)  # magnitudes of what agrees, 0 for the rest
    total = (agreeing if rule == "mergekit" else agreeing * weight).sum(0) * elected
    if not normalize:
        return total
    count = torch.sign(agreeing)
    return total / or_one((count if rule == "peft" else count * weight).sum(0))


def tanh(x: Tensor) -> Tensor:
    """tanh x = m / (m + 2) with m = exp(2x) - 1: to two units in the last place, at a third of the library's time.

    >>> bool(torch.allclose(tanh(torch.tensor([-1e-6, 0.5, 90.0])), torch.tensor([-1e-6, 0.5, 90.0]).tanh()))
    True
    """
    m = torch.expm1((2 * x).clamp_max(40))  # beyond which the result is 1
    return m / (m + 2)


def uniform(key: Tensor, start: Tensor, index: Tensor) -> Tensor:
    """Counter-based random numbers in [0, 1), of 24 bits: (1 + models) keys, (1,) start, (n,) index -> (models, n).

    Element `start + index` (modulo 2**32) of the streams that the keys, one of the tensor and one of each model, name;
    integer arithmetic that wraps, so the same bits on every device and for every cut. Mixing: C. Wellons' 32-bit
    integer hash `lowbias32`, once for the tensor and once for each model.
    """
    words = mixed(mixed((start + index) ^ key[:1]) ^ key[1:, None])
    return ((words >> 8) & 0xFFFFFF).float() * 2.0**-24


def stream_word(seed: int, page: int, name: str, model: int) -> int:
    """What `uniform` knows a model's random numbers of one tensor by, model -1 being the tensor: 32 bits, signed.

    `page` counts the 2**32 elements that one stream holds.
    """
    digest = hashlib.blake2b(f"{seed}/{page}/{model}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def partition(draws: Tensor, count: int) -> Tensor:
    """Which of `count` partitions each entry belongs to, from draws in [0, 1): int64.

    >>> partition(torch.tensor([0.0, 0.3, 0.999]), 3).tolist()
    [0, 0, 2]
    """
    return (draws * count).long().clamp_max(count - 1)


def mixed(x: Tensor) -> Tensor:
    """32 bits scrambled, as int32: a bijection that wraps alike on every device."""
    # int32 shifts are arithmetic: the mask drops the copies of the sign bit
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846ca68b as a signed number
    return x ^ ((x >> 16) & 0xFFFF)
