"""Order statistics without a sort are those of a sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paramsmith import order
from paramsmith.order import Digits, Tally, bracket, ordered_keys, sample_size

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]


def data(kind: str, dtype: np.dtype, count: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(3)
    made = {
        "normal": lambda: rng.normal(size=count),
        "heavy_ties": lambda: rng.integers(-3, 4, count) / 2,
        "zeros": lambda: np.zeros(count),
        "signed_zeros": lambda: np.where(rng.random(count) < 0.5, -0.0, 0.0),
        "constant": lambda: np.full(count, -1.25),
        "infinities": lambda: rng.choice([-math.inf, math.inf, 0.0, 1.0, -2.0], count),
        "subnormal": lambda: rng.normal(size=count) * 1e-40,
        "wide": lambda: rng.normal(size=count) * 10.0 ** rng.integers(-30, 30, count),
    }
    return made[kind]().astype(dtype)


KINDS = ["normal", "heavy_ties", "zeros", "signed_zeros", "constant", "infinities", "subnormal", "wide"]
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tally(scores: np.ndarray, low: np.ndarray, high: np.ndarray, block: int = 700) -> Tally:
    """A tally of scores (rows, n), filled in blocks as the engine does."""
    made = Tally(low, high)
    for start in range(0, scores.shape[1], block):
        part = scores[:, start : start + block]
        below = (part[:, None] < low[..., None]).sum(-1)
        within = (part[:, None] >= low[..., None]) & (part[:, None] <= high[..., None])
        made.add(part.shape[1], below, [line[mark.any(0)] for line, mark in zip(part, within, strict=True)])
    return made


def digits(scores: np.ndarray, ranks: list[list[int]], block: int = 700) -> np.ndarray:
    search = Digits(ranks, scores.dtype)
    for passes in range(1, 10):
        for start in range(0, scores.shape[1], block):
            search.add(scores[:, start : start + block])
        found = search.step()
        if found is not None:
            assert passes == scores.dtype.itemsize // 2
            return found
    raise AssertionError("no end")


def all_ranks(count: int) -> list[int]:
    return [0, 1, count // 3, count // 2, count - 2, count - 1]


@kinds
@dtypes
def test_a_tally_in_brackets_finds_what_sorting_finds(kind: str, dtype: np.dtype) -> None:
    scores = np.stack([data(kind, dtype), data("normal", dtype)])
    ranks = [all_ranks(5000)] * 2
    ends = np.array([[bracket(row[::10].copy(), k, 5000) for k in ranks[0]] for row in scores], dtype)
    found = tally(scores, ends[..., 0], ends[..., 1]).find(ranks)
    assert found is not None
    np.testing.assert_array_equal(found, np.sort(scores, axis=1)[:, ranks[0]])
    assert found.dtype == dtype


@kinds
@dtypes
def test_a_radix_search_finds_what_sorting_finds(kind: str, dtype: np.dtype) -> None:
    scores = np.stack([data(kind, dtype), data("normal", dtype)])
    ranks = [all_ranks(5000), all_ranks(5000)[::-1]]
    wanted = np.take_along_axis(np.sort(scores, axis=1), np.array(ranks), 1)
    np.testing.assert_array_equal(digits(scores, ranks), wanted)


@given(st.sampled_from(DTYPES).flatmap(lambda d: arrays.arrays(d, st.integers(1, 60), elements={"allow_nan": False})))
def test_both_ways_agree_with_sorting_on_anything(line: np.ndarray) -> None:
    ranks = [list(range(len(line)))]
    wanted = np.sort(line)[None]
    np.testing.assert_array_equal(digits(line[None], ranks, block=7), wanted)
    ends = np.full((1, len(line)), np.inf, line.dtype)
    np.testing.assert_array_equal(tally(line[None], -ends, ends, block=7).find(ranks), wanted)


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.integers(-5, 5).map(float)),
    st.integers(-6, 6),
    st.integers(0, 5),
)
def test_a_bracket_gives_the_exact_value_or_nothing(line: np.ndarray, low: int, width: int) -> None:
    """The tally knows for itself whether the rank lies within."""
    ends = np.float32([[low]]), np.float32([[low + width]])
    for rank, wanted in enumerate(np.sort(line)):
        found = tally(line[None], *ends, block=9).find([[rank]])
        if low <= wanted <= low + width:
            assert found is not None
            assert found[0, 0] == wanted
        else:
            assert found is None


def test_overlapping_brackets_of_one_row_do_not_disturb_each_other() -> None:
    line = np.arange(1000, dtype=np.float32)[None]
    low, high = np.float32([[100, 150, 900]]), np.float32([[300, 200, 950]])
    np.testing.assert_array_equal(tally(line, low, high).find([[250, 180, 920]]), [[250, 180, 920]])
    assert tally(line, low, high).find([[250, 250, 920]]) is None


def test_many_distinct_values_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: too many distinct values are given up, equal ones are one."""
    monkeypatch.setattr(order, "PACK", 100)
    monkeypatch.setattr(order, "LIMIT", 50)
    ends = np.full((1, 1), np.inf, np.float32)
    assert tally(data("normal", DTYPES[0])[None], -ends, ends).find([[7]]) is None
    ties = data("heavy_ties", DTYPES[0])
    found = tally(ties[None], -ends, ends).find([[2500]])
    assert found is not None
    assert found[0, 0] == np.sort(ties)[2500]


def test_packing_on_the_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "PACK", 10)
    scores = np.stack([data("heavy_ties", DTYPES[0]), data("normal", DTYPES[0])])
    ends = np.full((2, 3), np.inf, np.float32)
    ranks = [[0, 2500, 4999]] * 2
    np.testing.assert_array_equal(tally(scores, -ends, ends).find(ranks), np.sort(scores, axis=1)[:, ranks[0]])


@given(st.integers(1, 10**7), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_brackets_of_a_fair_sample_hold_the_rank(count: int, share: float, seed: int) -> None:
    """Of the numbers 0 .. count-1 the element of a rank is the rank itself."""
    rank = min(count - 1, int(share * count))
    sample = np.random.default_rng(seed).integers(0, count, min(count, 5000)).astype(np.float64)
    low, high = bracket(sample, rank, count)
    assert low <= rank <= high


def test_brackets_are_narrow() -> None:
    sample = np.random.default_rng(0).random(1 << 16)
    low, high = bracket(sample, 500_000, 1_000_000)
    assert 0 < high - low < 0.03
    assert bracket(sample, 0, 1_000_000)[0] == -math.inf
    assert bracket(sample, 999_999, 1_000_000)[1] == math.inf
    assert bracket(sample[:0], 5, 10) == (-math.inf, math.inf)


def test_samples_are_all_of_a_small_set_and_bounded() -> None:
    assert sample_size(10, 1 << 22) == 10
    assert sample_size(1 << 16, 1 << 22) == 1 << 16
    assert sample_size(10**7, 1 << 22) == 10**7 // 32
    assert sample_size(10**12, 1 << 22) == 1 << 22
    assert sample_size(10**12, 1 << 18) == 1 << 18


@dtypes
def test_keys_are_in_the_order_of_the_floats(dtype: np.dtype) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    floats = np.array([-math.inf, -3, -1, -tiny, 0, tiny, 1e-30, 1, 3, math.inf], dtype)
    keys = ordered_keys(floats)
    assert keys.dtype.itemsize == dtype.itemsize
    assert (keys[1:] > keys[:-1]).all()
    assert ordered_keys(np.array([-0.0], dtype)) == ordered_keys(np.array([0.0], dtype))
