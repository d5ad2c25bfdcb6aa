"""Data for measuring and learning: the rows of files, one at a time, always the same ones in the same order."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import place

from .formats import Found, Reader, open_reader


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file: its number among all the rows of all the files, from 0, and its values by column."""

    number: int
    where: str
    values: Mapping[str, object]
    folder: Path = Path()  # where relative paths in it begin

    def __getitem__(self, column: str) -> object:
        """The value of a column. InvalidInput, with the nearest name, when the row has no such column."""
        if column not in self.values:
            near = difflib.get_close_matches(column, self.values, 1)
            question = f"did you mean {printable(near[0])!r}? " if near else ""
            fact = f"{self.where} has no column {printable(column)!r}"
            raise InvalidInput(fact, f"{question}it has {printable(', '.join(self.values)) or 'none'}")
        return self.values[column]


class Rows:
    """The rows of files, read anew at every iteration: jsonl, csv, tsv, parquet, txt, or a folder of images.

    The files follow each other. `limit` takes the first so many rows; `shuffle` first puts them in an order that
    depends on the seed and their number alone (row groups of parquet, then the rows of a group, so that no more than
    a group is held). InvalidInput names the file and the line of what is missing, empty, damaged or ragged, and tells
    when there are fewer rows than `limit`.
    """

    def __init__(
        self, files: Sequence[str | Path], *, limit: int | None = None, shuffle: bool = False, seed: int = 0
    ) -> None:
        if not files:
            raise InvalidInput("no data given", "give at least one file")
        if limit is not None and limit < 1:
            raise InvalidInput(f"{limit:,} examples are asked for", "ask for 1 or more")
        self._files = [Path(file) for file in files]
        self._limit, self._shuffle, self._seed = limit, shuffle, seed
        self._order: NDArray[np.int64] | None = None

    def __iter__(self) -> Iterator[Row]:
        with ExitStack() as stack:
            readers = [stack.enter_context(closing(open_reader(file))) for file in self._files]
            found = self._shuffled(readers) if self._shuffle else _in_order(readers)
            seen = 0
            for row in islice(found, self._limit):
                seen += 1
                yield row
        if self._limit is not None and seen < self._limit:
            fact = f"{self._limit:,} examples are asked for, the data has {seen:,}"
            raise InvalidInput(fact, f"--limit {seen}, or more data")

    def _shuffled(self, readers: Sequence[Reader]) -> Iterator[Row]:
        if self._order is None:
            self._order = _order(readers, self._seed)[: self._limit]
        labels = [_label(reader) for reader in readers]
        for reader, begin, line, number in map(np.ndarray.tolist, self._order):
            yield Row(number, f"{labels[reader]} {line:,}", readers[reader].at(begin, line), readers[reader].folder)


def _in_order(readers: Sequence[Reader]) -> Iterator[Row]:
    numbers = count()
    for reader in readers:
        label = _label(reader)
        for found in _some(reader):
            yield Row(next(numbers), f"{label} {found.line:,}", found.values, reader.folder)


def _some(reader: Reader) -> Iterator[Found]:
    empty = True
    for found in reader.rows():
        empty = False
        yield found
    if empty:
        raise InvalidInput(f"{place(reader.path)}: is empty", "give a file with at least one row")


def _label(reader: Reader) -> str:
    return f"{place(reader.path)}: {reader.unit}"


def _order(readers: Sequence[Reader], seed: int) -> NDArray[np.int64]:
    """(rows, 4): reader, first byte, line and number of each row, in an order drawn from the seed.

    Row n has the n-th number of a counter-based generator for its key, and the rows are sorted by the key of the first
    row of their block and then by their own.
    """
    places = ((r, found.begin, found.line, found.block) for r, reader in enumerate(readers) for found in _some(reader))
    table: NDArray[np.int64] = np.fromiter(places, np.dtype((np.int64, 4))).astype(np.int64, copy=False)
    keys = np.random.Philox(key=seed).random_raw(len(table))
    _, first, block = np.unique(table[:, [0, 3]], axis=0, return_index=True, return_inverse=True)
    order = np.lexsort((keys, keys[first[block.reshape(-1)]]))
    return np.column_stack([table[:, :3], np.arange(len(table))])[order]
