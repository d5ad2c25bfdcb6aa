"""The journal of an output being written: which byte ranges are safely on the disk, and small values worth keeping.

A text file that only grows. A line is a CRC-32, a space and JSON; the first says for which output the others hold. A
line is appended after the data it speaks of was synced, so the journal never promises more than the disk holds, power
loss included; and each line is synced before the next one, so only the last can be torn.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paramsmith.disk import write_error
from paramsmith.shards import Layout

Range = tuple[int, int, int]  # file number, first byte, the byte after the last


class RangeSet:
    """Byte ranges of several files, sorted, overlapping and touching ones joined.

    >>> ranges = RangeSet([(0, 8, 16), (0, 16, 32), (1, 0, 4)])
    >>> list(ranges), ranges.nbytes
    ([(0, 8, 32), (1, 0, 4)], 28)
    >>> ranges.covers(0, 10, 32), ranges.covers(1, 0, 5)
    (True, False)
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._spans: dict[int, list[tuple[int, int]]] = {}
        self.add(ranges)

    def add(self, ranges: Iterable[Range]) -> None:
        """Take in more ranges; cheap for many at once, not for one at a time."""
        touched = set()
        for file, start, end in ranges:
            if start < end:
                self._spans.setdefault(file, []).append((start, end))
                touched.add(file)
        for file in touched:
            self._spans[file] = _joined(self._spans[file])

    def covers(self, file: int, start: int, end: int) -> bool:
        """Whether every byte of [start, end) is in the set."""
        spans = self._spans.get(file, [])
        at = bisect_right(spans, (start, sys.maxsize)) - 1
        return start == end or (at >= 0 and end <= spans[at][1])

    def first_gap(self, file: int, start: int, end: int) -> int | None:
        """The first byte of [start, end) that is not in the set."""
        for first, after in self._spans.get(file, []):
            if first > start:
                break
            start = max(start, after)
        return start if start < end else None

    def files(self) -> set[int]:
        """The numbers of the files with a range."""
        return set(self._spans)

    @property
    def nbytes(self) -> int:
        """How many bytes the ranges hold together."""
        return sum(end - start for _, start, end in self)

    def __iter__(self) -> Iterator[Range]:
        return ((file, start, end) for file, spans in sorted(self._spans.items()) for start, end in spans)

    def __bool__(self) -> bool:
        return bool(self._spans)


@dataclass(frozen=True, slots=True)
class Replay:
    """What an earlier run left: its finished ranges, its values as JSON text, and the length of the sound part."""

    finished: RangeSet
    values: Mapping[str, str]
    length: int


def replay(path: Path, identity: Mapping[str, str]) -> Replay | None:
    """Read a journal back; None when there is none, when it is another output's, or when it is damaged.

    A torn last line is left out: what it told of is written again.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except OSError:
        return None  # absent or unreadable: either way there is nothing to resume from
    records, length = [], 0
    for number, line in enumerate(lines, 1):
        record = _decode(line)
        if record is None and number == len(lines) and not rest:
            break
        if record is None:
            return None
        records.append(record)
        length += len(line) + 1
    if not records or records[0] != dict(identity):
        return None
    return _gather(records[1:], length)


class Journal:
    """The journal being written. A thread of its own syncs and appends about once a second; `finish` only notes.

    `sync` is called with the numbers of the files that must be on the disk before their ranges are recorded, `recorded`
    with all that is finished, after each record and once for what an earlier run left.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, str],
        sync: Callable[[Collection[int]], None],
        before: Replay | None = None,
        interval: float = 1.0,
        recorded: Callable[[RangeSet], None] | None = None,
    ) -> None:
        self._path = path
        self._sync = sync
        self._recorded = recorded
        self._interval = interval
        self._lock = threading.Lock()
        self._ranges: list[Range] = []
        self._values: dict[str, str] = {}
        self._known: dict[str, str] = dict(before.values) if before else {}
        self._error: Exception | None = None
        self._stopping = threading.Event()
        self.finished = RangeSet(before.finished if before else ())
        self._fd = self._open(identity, before)
        self._thread = threading.Thread(target=self._run, name="paramsmith-journal", daemon=True)
        self._thread.start()

    def finish(self, ranges: Iterable[Range]) -> None:
        """Note that these ranges are written; recorded once they are on the disk. Raises what the thread ran into."""
        self.check()
        with self._lock:
            self._ranges.extend(ranges)

    def remember(self, key: str, value: object) -> None:
        """Note a value that JSON can hold. Floats come back exactly, tuples as lists."""
        self.check()
        text = json.dumps(value)
        with self._lock:
            self._values[key] = self._known[key] = text

    def recall(self, key: str) -> object | None:
        """A value noted by this run or by the interrupted one before it."""
        text = self._known.get(key)
        value: object = None if text is None else json.loads(text)
        return value

    def check(self) -> None:
        """Raise what the thread ran into, if anything."""
        if self._error is not None:
            raise self._error

    def stop(self, flush: bool = True) -> None:
        """End the thread; `flush` records what was noted until now. May be called again. Raises nothing: see check."""
        self._stopping.set()
        self._thread.join()
        if self._fd < 0:
            return
        if flush:
            self._flush()
        os.close(self._fd)
        self._fd = -1

    def _open(self, identity: Mapping[str, str], before: Replay | None) -> int:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            # the next line must not be glued to a torn one
            os.ftruncate(fd, before.length if before else 0)
            if before is None:
                _append(fd, identity)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _run(self) -> None:
        if self._recorded is not None:
            self._recorded(self.finished)
        while self._error is None and not self._stopping.wait(self._interval):
            self._flush()

    def _flush(self) -> None:
        if self._error is not None:
            return
        with self._lock:
            ranges, self._ranges = self._ranges, []
            values, self._values = self._values, {}
        if not ranges and not values:
            return
        try:
            batch = RangeSet(ranges)
            self._sync(batch.files())
            _append(self._fd, {"finished": list(batch), "remembered": values})
            os.fsync(self._fd)
            self.finished.add(batch)
            if self._recorded is not None:
                self._recorded(self.finished)
        except OSError as error:
            self._error = write_error(error, self._path)
        except Exception as error:  # noqa: BLE001  a thread has nobody to raise to: the owner's next call raises it
            self._error = error


class Completions:
    """Tells of each file of a layout once, by its path in `folder`, as soon as all of its tensors are finished.

    What `tell` raises is its own affair: writing goes on.
    """

    def __init__(self, layout: Layout, folder: Path, tell: Callable[[Path], None] | None) -> None:
        self._open = dict(enumerate(layout.files)) if tell is not None else {}
        self._folder = folder
        self._tell = tell

    def __call__(self, finished: RangeSet) -> None:
        """Look through what is finished by now."""
        whole = [number for number, file in self._open.items() if finished.covers(number, len(file.header), file.size)]
        for number in whole:
            file = self._open.pop(number)
            with contextlib.suppress(Exception):
                if self._tell is not None:
                    self._tell(self._folder / file.name)


def tensor_ranges(layout: Layout) -> Mapping[str, Range]:
    """Each tensor's file, first byte and the byte after its last, which is where the next tensor begins."""
    found: dict[str, Range] = {}
    for number, file in enumerate(layout.files):
        starts = [layout.where[name][1] for name in file.tensors]
        for name, start, end in zip(file.tensors, starts, [*starts[1:], file.size], strict=True):
            found[name] = (number, start, end)
    return found


def _append(fd: int, record: Mapping[str, object]) -> None:
    text = json.dumps(dict(record), separators=(",", ":")).encode()
    line = memoryview(b"%08x %s\n" % (zlib.crc32(text), text))
    while line:
        line = line[os.write(fd, line) :]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    spans.sort()
    joined = [spans[0]]
    for start, end in spans[1:]:
        first, last = joined[-1]
        if start <= last:
            joined[-1] = (first, max(last, end))
        else:
            joined.append((start, end))
    return joined


def _decode(line: bytes) -> dict[str, object] | None:
    text = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _gather(records: Iterable[dict[str, object]], length: int) -> Replay | None:
    ranges: list[Range] = []
    values: dict[str, str] = {}
    for record in records:
        finished, remembered = record.get("finished"), record.get("remembered")
        if not isinstance(finished, list) or not isinstance(remembered, dict):
            return None
        for entry in finished:
            if not (isinstance(entry, list) and len(entry) == 3 and all(type(number) is int for number in entry)):
                return None
            ranges.append((entry[0], entry[1], entry[2]))
        values.update((str(key), str(text)) for key, text in remembered.items())
    return Replay(RangeSet(ranges), values, length)
