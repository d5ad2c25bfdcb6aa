"""Cutting: every element once, in order, in blocks no larger than asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramsmith.blocks import Block, cut, sample


@dataclass(frozen=True)
class Task:
    name: int
    count: int
    kind: str = "a"


def tasks(counts: Iterable[int], kinds: str = "a") -> list[Task]:
    return [Task(i, count, kinds[i % len(kinds)]) for i, count in enumerate(counts)]


COUNTS = st.lists(st.integers(1, 300), max_size=12)


def covered(blocks: Iterable[Block[Task]]) -> Counter[tuple[int, int]]:
    """How often each element of each task lies in a block."""
    return Counter((s.task.name, s.start + i) for b in blocks for s in b.spans for i in range(s.count))


def check_shape(block: Block[Task], size: int) -> None:
    """Spans lie side by side and fill the block."""
    filled = 0
    for span in block.spans:
        assert span.at == filled
        assert 0 < span.count <= span.task.count - span.start
        filled += span.count
    assert 0 < filled == block.count <= size


@given(COUNTS, st.integers(1, 100), st.sampled_from(["a", "ab", "abc"]), st.booleans())
@example([1, 2, 2, 2, 2], 8, "a", True)  # a pack that the last would overfill by one
def test_every_element_is_in_one_block(counts: list[int], size: int, kinds: str, packed: bool) -> None:
    made = tasks(counts, kinds)
    blocks = list(cut(made, size, (lambda task: task.kind) if packed else None))
    assert covered(blocks) == Counter((t.name, i) for t in made for i in range(t.count))
    for block in blocks:
        check_shape(block, size)
        assert len({span.task.kind for span in block.spans}) == 1
        assert packed or len(block.spans) == 1


@given(COUNTS, st.integers(1, 6), st.integers(1, 40))
def test_aligned_cuts_start_and_end_at_multiples(counts: list[int], times: int, align: int) -> None:
    made = tasks(counts)
    blocks = list(cut(made, times * align, None, align))
    assert covered(blocks) == Counter((t.name, i) for t in made for i in range(t.count))
    for block in blocks:
        check_shape(block, times * align)
        (span,) = block.spans
        assert span.start % align == 0
        assert span.count % align == 0 or (span.count < align and span.start + span.count == span.task.count)


def test_small_tensors_are_packed_and_large_ones_cut() -> None:
    blocks = list(cut(tasks([10, 100, 20, 25, 26]), 100, lambda task: task.kind))
    assert [[(s.task.name, s.start, s.count, s.at) for s in b.spans] for b in blocks] == [
        [(1, 0, 100, 0)],
        [(4, 0, 26, 0)],
        [(0, 0, 10, 0), (2, 0, 20, 10), (3, 0, 25, 30)],
    ]


def test_a_full_pack_is_closed_and_another_opened() -> None:
    blocks = list(cut(tasks([25] * 9), 100, lambda task: task.kind))
    assert [b.count for b in blocks] == [100, 100, 25]
    assert [b.task.name for b in blocks] == [0, 4, 8]


@given(COUNTS, st.integers(1, 400), st.integers(1, 64), st.integers(64, 200))
def test_samples_hold_elements_once_and_no_more_than_asked(
    counts: list[int], wanted: int, chunk: int, size: int
) -> None:
    made = tasks(counts)
    blocks = list(sample(made, wanted, size, chunk))
    seen = covered(blocks)
    assert set(seen) <= {(t.name, i) for t in made for i in range(t.count)}
    assert max(seen.values(), default=1) == 1
    for block in blocks:
        check_shape(block, size)
    assert seen.total() <= 2 * max(wanted, chunk)


@pytest.mark.parametrize("counts", [[1_000_000], [10_000] * 100, [1] * 5000 + [995_000]])
def test_samples_are_spread_evenly(counts: list[int]) -> None:
    made = tasks(counts)
    seen = covered(sample(made, 100_000, 65_536))
    assert 80_000 < seen.total() < 120_000
    starts, place = {}, 0
    for task in made:
        starts[task.name], place = place, place + task.count
    tenths = Counter((starts[name] + i) // 100_000 for name, i in seen)
    assert set(tenths) == set(range(10))
    assert max(tenths.values()) < 2 * min(tenths.values())
