"""The primitives methods are made of: by hand on small blocks, and what chance must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramsmith.ops import elected_sum, keep, known, ones_where, or_one, tanh, trim, uniform, votes, weighted_sum

T = torch.tensor
INDEX = torch.arange(4096, dtype=torch.int32)


def test_keep_and_masks_keep_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        x = T([1.0, -2.0, 3.0], dtype=dtype)
        assert keep(x > 0, x).dtype == ones_where(x > 0, x).dtype == or_one(x).dtype == dtype
        assert keep(x > 0, x).tolist() == [1, 0, 3]
        assert ones_where(x > 0, x).tolist() == [1, 0, 1]


def test_what_is_dropped_does_not_spoil_what_is_kept() -> None:
    """A product with a mask would give NaN for infinities."""
    assert keep(T([True, False, False]), T([1.0, math.inf, math.nan])).tolist() == [1, 0, 0]
    assert known(T([math.nan, -1.0, math.inf])).tolist() == [0, -1, math.inf]


def test_trim_keeps_what_is_as_large_as_the_threshold() -> None:
    deltas = T([[3.0, -1.0, 2.0, -2.0, 0.0], [3.0, -1.0, 2.0, -2.0, 0.0]])
    assert trim(deltas, T([[2.0], [0.0]])).tolist() == [[3, 0, 2, -2, 0], [3, -1, 2, -2, 0]]


def test_divisors_that_are_nothing_become_one() -> None:
    assert or_one(T([0.0, -0.0, 2.0, -1e-9])).tolist() == pytest.approx([1, 1, 2, -1e-9])
    assert or_one(T([1e-9, -1e-9, 1e-7]), 1e-8).tolist() == pytest.approx([1, 1, 1e-7])


def test_weighted_sums_divide_unless_the_weights_cancel() -> None:
    deltas = T([[1.0, 2.0], [3.0, -6.0]])
    assert weighted_sum(deltas, T([[1.0], [0.5]]), False).tolist() == [2.5, -1]
    assert weighted_sum(deltas, T([[1.0], [1.0]]), True).tolist() == [2, -2]
    assert weighted_sum(deltas, T([[1.0], [-1.0]]), True).tolist() == [-2, 8]


def test_votes_count_entries_or_signs() -> None:
    kept = T([[5.0, 0.0], [-1.0, 0.0], [-1.0, 2.0]])
    assert votes(kept, "total").tolist() == [3, 2]
    assert votes(kept, "frequency").tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("rule", "normalize", "majority", "wanted"),
    [  # columns: agreement, a clear majority, a tie, a tie of opposite weights, nothing
        ("native", True, "total", [2.5, -5, 0, 0, 0]),
        ("native", False, "total", [7.5, -10, 0, 0, 0]),
        ("mergekit", True, "total", [2.5, -5, -1, 3, 0]),
        ("mergekit", False, "total", [7.5, -10, -2, 3, 0]),
        ("peft", True, "total", [3.75, -10, 1, 3, 0]),
        ("peft", True, "frequency", [3.75, 2, 1, 3, 0]),
    ],
)
def test_elections(rule: str, normalize: bool, majority: str, wanted: list[float]) -> None:
    kept = T([[1.5, 2.0, 1.0, 3.0, 0.0], [3.0, -5.0, -1.0, -3.0, 0.0]])
    found = elected_sum(kept, T([[1.0], [2.0]]), rule, normalize, majority)  # type: ignore[arg-type]
    if rule == "mergekit":
        wanted = [*wanted[:3], -3 if normalize else -6, 0]  # weights first: 3 against -6
    assert found.tolist() == pytest.approx(wanted)


@given(st.floats(-50, 50, width=32))
def test_tanh_is_that_of_the_library(x: float) -> None:
    for dtype, places in ((torch.float32, 4e-7), (torch.float64, 1e-15)):
        found = tanh(T(x, dtype=dtype)).item()
        assert found == pytest.approx(math.tanh(x), rel=places, abs=0)
        assert abs(found) <= 1


def test_tanh_at_the_ends() -> None:
    assert tanh(T([math.inf, -math.inf, 0.0, 1e30, -1e30])).tolist() == [1, -1, 0, 1, -1]
    assert tanh(T([math.nan])).isnan().all()


def drawn(key: tuple[int, int], start: int = 0, count: int = 4096) -> np.ndarray:
    return uniform(T(key, dtype=torch.int32), T([start], dtype=torch.int32), INDEX[:count])[0].numpy()


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 4000), st.integers(1, 96))
def test_random_numbers_do_not_depend_on_the_cut(first: int, second: int, start: int, count: int) -> None:
    part = drawn((first, second), start, count)
    assert (part == drawn((first, second))[start : start + count]).all()
    assert part.min() >= 0
    assert part.max() < 1


def test_random_numbers_go_on_across_the_wrap_of_the_counter() -> None:
    """Element 2**31 follows 2**31 - 1; the counter is a signed number on the way."""
    across = drawn((1, 2), 2**31 - 10, 20)
    assert (across[10:] == drawn((1, 2), -(2**31), 10)).all()
    assert len(np.unique(across)) > 15


def hash_by_hand(key: tuple[int, int], place: int) -> float:
    def mixed(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    return float((mixed(mixed(place ^ key[0]) ^ key[1]) >> 8) * 2.0**-24)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 200))
def test_random_numbers_are_the_hash_they_say(first: int, second: int, start: int) -> None:
    found = drawn((first, second), start, 100)
    assert found.tolist() == [hash_by_hand((first, second), start + i) for i in range(100)]


def test_random_numbers_are_even_and_unrelated() -> None:
    """Between the models of one tensor, and between the tensors of one model."""
    count = 1 << 18
    index = torch.arange(count, dtype=torch.int32)
    keys = [T(words, dtype=torch.int32) for words in ([1, 2, 3], [-5, 2, 7])]
    lines = torch.cat([uniform(key, T([0], dtype=torch.int32), index) for key in keys]).double()
    for line in lines:
        cells = torch.histc(line.float(), 64, 0, 1).double()
        assert ((cells - count / 64) ** 2 / (count / 64)).sum() < 120  # chi square, 63 degrees
        pairs = torch.histc((line[1:] * 8).floor() * 8 + (line[:-1] * 8).floor(), 64, 0, 64)
        assert ((pairs - count / 64) ** 2 / (count / 64)).sum() < 120
    related = torch.corrcoef(lines) - torch.eye(4, dtype=torch.float64)
    assert related.abs().max() < 5 / count**0.5
