"""The journal says what is on the disk, never more; and whatever is left of it is read back or distrusted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramsmith.errors import Failed
from paramsmith.journal import Journal, RangeSet, replay

IDENTITY = {"key": "k", "layout": "l"}
RANGES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 30)))


def no_sync(files: Collection[int]) -> None:
    pass


def journal_of(path: Path, *batches: list[tuple[int, int, int]]) -> Path:
    """A journal with one line for each batch."""
    for batch in batches:
        journal = Journal(path, IDENTITY, no_sync, replay(path, IDENTITY))
        journal.finish(batch)
        journal.stop()
    return path


@given(RANGES, RANGES)
def test_ranges_behave_like_a_set_of_bytes(first: list[tuple[int, int, int]], then: list[tuple[int, int, int]]) -> None:
    ranges = RangeSet(first)
    ranges.add(then)
    model = {(file, byte) for file, start, end in first + then for byte in range(start, end)}
    assert ranges.nbytes == len(model)
    assert {(file, byte) for file, start, end in ranges for byte in range(start, end)} == model
    assert all(left[0] < right[0] or left[2] < right[1] for left, right in zip(ranges, list(ranges)[1:], strict=False))
    for start in range(0, 31, 3):
        for end in range(start, 31, 5):
            inside = [(0, byte) in model for byte in range(start, end)]
            assert ranges.covers(0, start, end) == all(inside)
            assert ranges.first_gap(0, start, end) == (None if all(inside) else start + inside.index(False))


def test_ranges_and_values_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", IDENTITY, no_sync)
    values = {"float": 0.1 + 0.2, "tiny": 5e-324, "list": [1, None, "ä\n"], "nested": {"a": {"b": True}}}
    for key, value in values.items():
        journal.remember(key, value)
    journal.remember("tuple", (1, 2))
    journal.finish([(0, 8, 16), (0, 16, 20)])
    assert journal.recall("tuple") == [1, 2]
    journal.stop()
    before = replay(tmp_path / "j", IDENTITY)
    assert before is not None
    assert list(before.finished) == [(0, 8, 20)]
    again = Journal(tmp_path / "j", IDENTITY, no_sync, before)
    assert {key: again.recall(key) for key in values} == values
    assert again.recall("tuple") == [1, 2]
    assert again.recall("never") is None
    again.stop()


def test_every_truncation_keeps_only_whole_lines(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", [(0, 0, 10)], [(0, 20, 30)], [(1, 0, 5)])
    data = path.read_bytes()
    whole = {data[:end].count(b"\n"): end for end in range(len(data) + 1) if data[:end].endswith(b"\n")}
    seen = set()
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        before = replay(path, IDENTITY)
        lines = data[:end].count(b"\n")
        if lines == 0:
            assert before is None
            continue
        assert before is not None
        assert before.length == whole[lines]
        assert list(before.finished) == [(0, 0, 10), (0, 20, 30), (1, 0, 5)][: lines - 1]
        seen.add(lines)
    assert seen == {1, 2, 3, 4}


def test_torn_line_is_cut_off_before_the_next_is_appended(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", [(0, 0, 10)], [(0, 20, 30)])
    path.write_bytes(path.read_bytes()[:-7])
    journal_of(path, [(1, 0, 5)])
    before = replay(path, IDENTITY)
    assert before is not None
    assert list(before.finished) == [(0, 0, 10), (1, 0, 5)]


def test_zeros_after_a_power_loss_are_a_torn_line(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", [(0, 0, 10)])
    path.write_bytes(path.read_bytes() + bytes(50))
    before = replay(path, IDENTITY)
    assert before is not None
    assert list(before.finished) == [(0, 0, 10)]


def test_damage_before_the_end_discards_everything(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", [(0, 0, 10)], [(0, 20, 30)])
    data = path.read_bytes()
    last = data.rstrip(b"\n").rindex(b"\n") + 1
    for position in range(last):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        before = replay(path, IDENTITY)
        if position == last - 1:
            # without the newline between them the last two lines are one, torn
            assert before is not None
            assert not before.finished
        else:
            assert before is None, position


@pytest.mark.parametrize("content", [b"", b"\n", b"[1]\n", b"00000000 {}\n", b"\xff" * 100, b"deadbeef\n" * 3])
def test_anything_else_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    assert replay(tmp_path / "j", IDENTITY) is None


def test_another_outputs_journal_is_not_taken(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", [(0, 0, 10)])
    assert replay(path, IDENTITY) is not None
    assert replay(path, {**IDENTITY, "key": "other"}) is None
    assert replay(tmp_path / "absent", IDENTITY) is None


def test_a_line_is_written_after_the_sync_of_its_files(tmp_path: Path) -> None:
    path = tmp_path / "j"
    seen: list[tuple[list[int], int]] = []

    def sync(files: Collection[int]) -> None:
        seen.append((sorted(files), path.read_bytes().count(b"\n")))

    journal = Journal(path, IDENTITY, sync, interval=0.01)
    journal.finish([(3, 0, 8), (1, 0, 8)])
    deadline = time.monotonic() + 5
    while path.read_bytes().count(b"\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert seen == [([1, 3], 1)]
    assert path.read_bytes().count(b"\n") == 2
    journal.stop()


def test_failed_sync_is_raised_at_the_next_call_and_never_recorded(tmp_path: Path) -> None:
    def sync(files: Collection[int]) -> None:
        raise Failed("the disk reported an error")

    journal = Journal(tmp_path / "j", IDENTITY, sync, interval=0.01)
    journal.finish([(0, 0, 8)])
    deadline = time.monotonic() + 5
    while journal._error is None and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(Failed, match="disk reported"):
        journal.finish([(0, 8, 16)])
    journal.stop()
    before = replay(tmp_path / "j", IDENTITY)
    assert before is not None
    assert not before.finished


def test_unwritable_journal_names_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", IDENTITY, no_sync)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._fd)
    os.close(full)
    journal.finish([(0, 0, 8)])
    journal.stop()
    with pytest.raises(Failed, match=r"no space left while writing .*/j"):
        journal.check()


def test_value_that_json_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", IDENTITY, no_sync)
    with pytest.raises(TypeError):
        journal.remember("bad", object())
    journal.stop()


def test_stop_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    start = time.monotonic()
    journal = Journal(tmp_path / "j", IDENTITY, no_sync, interval=60)
    journal.finish([(0, 0, 8)])
    journal.stop()
    assert time.monotonic() - start < 5
    assert json.loads((tmp_path / "j").read_bytes().splitlines()[1][9:])["finished"] == [[0, 0, 8]]
