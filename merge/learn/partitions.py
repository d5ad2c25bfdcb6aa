"""aTLAS x K: which of K coefficients an element of a tensor belongs to, the same for all models."""

from __future__ import annotations

import torch
from torch import Tensor

from paramsmith.blocks import CUT
from paramsmith.ops import partition, stream_word, uniform

MOST = 1 << 15  # partitions: maps are held as int16 at most


def partition_map(name: str, count: int, partitions: int, seed: int) -> Tensor:
    """The partition of each element of a tensor, int64 (count,): floor(K u) with counter-based random numbers u.

    u is what the method `atlas` draws for its first model: keyed by (seed, tensor, element).

    >>> partition_map("layers.0.w", 8, 3, seed=0).tolist() == partition_map("layers.0.w", 9, 3, seed=0).tolist()[:8]
    True

    Paper: Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, arXiv:2407.02880.
    """
    return _filled(torch.empty(count, dtype=torch.int64), name, partitions, seed)


def held_map(name: str, count: int, partitions: int, seed: int) -> Tensor:
    """The same in few bytes: uint8, or int16 for more than 256 partitions."""
    dtype = torch.uint8 if partitions <= 256 else torch.int16
    return _filled(torch.empty(count, dtype=dtype), name, partitions, seed)


def _filled(found: Tensor, name: str, partitions: int, seed: int) -> Tensor:
    for start in range(0, len(found), CUT):
        part = found[start : start + CUT]
        part.copy_(partition(_draws(name, start, len(part), seed), partitions))
    return found


def _draws(name: str, start: int, count: int, seed: int) -> Tensor:
    """Numbers in [0, 1) of elements [start, start + count), which lie in one page of 2**32."""
    page, low = start >> 32, start & 0xFFFFFFFF
    key = torch.tensor([stream_word(seed, page, name, model) for model in (-1, 0)], dtype=torch.int32)
    first = torch.tensor([low - ((low & 0x80000000) << 1)], dtype=torch.int32)
    return uniform(key, first, torch.arange(count, dtype=torch.int32))[0]
