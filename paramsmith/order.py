"""Exact order statistics of numbers that are never together in memory, without a sort.

A sample brackets the wanted rank; one pass counts what lies below the bracket and collects the few values inside it,
equal ones as one; the value of the rank is read off. Where a rank escapes its bracket, a radix search over the bit
patterns finds it in a fixed number of passes. Both are exact, and independent of the order in which blocks come.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
# Collected values are packed when this many wait (or as many as are packed already), and given up when more distinct
# ones than the limit remain.
PACK, LIMIT = 1 << 13, 1 << 23


def sample_size(count: int, most: int) -> int:
    """How many elements to sample of `count`: all of a small tensor, a part of a large one, at most `most`."""
    return min(count, max(min(most, 1 << 16), min(count // 32, most)))


def bracket(sample: Floats, rank: int, count: int) -> tuple[float, float]:
    """Values that enclose the element of that rank, with a probability of failure below 1e-8 for a fair sample.

    >>> bracket(np.arange(10.0), 4, 10)
    (-inf, inf)
    """
    size = len(sample)
    share = rank / max(1, count - 1)
    slack = 6 * math.sqrt(share * (1 - share) * size) + 16
    low, high = math.floor(share * size - slack), math.ceil(share * size + slack)
    wanted = [i for i in (low, high) if 0 <= i < size]
    part = np.partition(sample, wanted) if wanted else sample
    return (float(part[low]) if low >= 0 else -math.inf, float(part[high]) if high < size else math.inf)


class Tally:
    """What one pass saw of one set of numbers: rows of scores, `ranks` brackets a row; filled by many workers."""

    def __init__(self, low: Floats, high: Floats, pack: int = PACK) -> None:
        self._pack_at = pack
        self.low, self.high = low, high  # (rows, ranks)
        self.below = np.zeros(low.shape, dtype=np.int64)
        self.spilled = False
        self._seen = 0
        self._values: list[list[tuple[Floats, NDArray[np.int64]]]] = [[] for _ in low]
        self._waiting: list[list[Floats]] = [[] for _ in low]
        self._lock = threading.Lock()

    def add(self, count: int, below: NDArray[np.int64], inside: Sequence[Floats]) -> int:
        """Take in a block of `count` elements: how many lie below each bracket (rows, ranks), and each row's values
        within any; the elements seen so far.
        """
        with self._lock:
            self._seen += count
            self.below += below
            for row, values in enumerate(inside):
                self._waiting[row].append(values)
                held = len(self._values[row][0][0]) if self._values[row] else 0
                if sum(map(len, self._waiting[row])) > max(self._pack_at, held):
                    self._pack(row)
            return self._seen

    def _pack(self, row: int) -> None:
        fresh = np.concatenate(self._waiting[row]) if self._waiting[row] else np.empty(0, self.low.dtype)
        self._waiting[row] = []
        if self.spilled:
            return
        packs = [*self._values[row], np.unique(fresh, return_counts=True)]
        values, places = np.unique(np.concatenate([v for v, _ in packs]), return_inverse=True)
        counts = np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, places, np.concatenate([c for _, c in packs]))
        self._values[row] = [(values, counts)]
        if len(values) > LIMIT:
            self.spilled, self._values = True, [[] for _ in self.low]

    def find(self, ranks: Sequence[Sequence[int]]) -> Floats | None:
        """The elements of these ranks (rows, ranks), or None when one lies outside its bracket."""
        found = np.empty(self.low.shape, dtype=self.low.dtype)
        for row, wanted in enumerate(ranks):
            self._pack(row)
            if self.spilled:
                return None
            values, counts = self._values[row][0]
            for k, rank in enumerate(wanted):
                first = np.searchsorted(values, self.low[row, k])
                upto = np.cumsum(counts[first:]) + self.below[row, k]
                place = int(np.searchsorted(upto, rank, side="right"))
                inside = rank >= self.below[row, k] and place < len(upto) and values[first + place] <= self.high[row, k]
                if not inside:
                    return None
                found[row, k] = values[first + place]
        return found


def ordered_keys(scores: Floats) -> NDArray[np.unsignedinteger]:
    """Unsigned integers in the order of the floats: sign flipped for positives, all bits for negatives.

    >>> bool(np.all(np.diff(ordered_keys(np.float32([-2, -1, 0, 1e-30, 3])).astype(np.int64)) > 0))
    True
    """
    bits, top = _bits((scores + 0).view(f"u{scores.dtype.itemsize}"))  # + 0 makes -0.0 and 0.0 equal
    return np.where(bits & top, ~bits, bits | top)


class Digits:
    """Radix search by 16 bits a pass: histograms of the next digit among keys with the digits found so far."""

    def __init__(self, ranks: Sequence[Sequence[int]], dtype: np.dtype[np.floating]) -> None:
        self.dtype = dtype
        self.left = np.array(ranks, dtype=np.int64)  # rank among the keys that share the prefix
        self.prefix = np.zeros(self.left.shape, dtype=np.uint64)
        self.shift = dtype.itemsize * 8 - 16
        self.histogram = np.zeros((*self.left.shape, 1 << 16), dtype=np.int64)
        self._lock = threading.Lock()

    def add(self, scores: Floats) -> None:
        """Count one block (rows, n)."""
        keys = ordered_keys(scores).astype(np.uint64)
        for row, k in np.ndindex(self.left.shape):
            line = keys[row]
            if self.shift + 16 < self.dtype.itemsize * 8:
                line = line[line >> np.uint64(self.shift + 16) == self.prefix[row, k]]
            digits = ((line >> np.uint64(self.shift)) & np.uint64(0xFFFF)).astype(np.int64)
            counts = np.bincount(digits, minlength=1 << 16)
            with self._lock:
                self.histogram[row, k] += counts

    def step(self) -> Floats | None:
        """Take the digit the histograms show; the values (rows, ranks) when it was the last."""
        for row, k in np.ndindex(self.left.shape):
            upto = np.cumsum(self.histogram[row, k])
            digit = int(np.searchsorted(upto, self.left[row, k], side="right"))
            self.left[row, k] -= upto[digit - 1] if digit else 0
            self.prefix[row, k] = (int(self.prefix[row, k]) << 16) | digit
        self.histogram[:] = 0
        self.shift -= 16
        return _floats(self.prefix, self.dtype) if self.shift < 0 else None


def _floats(keys: NDArray[np.uint64], dtype: np.dtype[np.floating]) -> Floats:
    bits, top = _bits(keys.astype(f"u{dtype.itemsize}"))
    values: Floats = np.where(bits & top, bits ^ top, ~bits).view(dtype)
    return values


def _bits(words: NDArray[np.unsignedinteger]) -> tuple[NDArray[np.unsignedinteger], np.unsignedinteger]:
    """The words, and their sign bit."""
    return words, words.dtype.type(1 << (words.dtype.itemsize * 8 - 1))
