"""Rows of one file: lines of JSON, CSV, parquet, plain text, or a folder of images; never more of it than is needed."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import DuplicateKey, open_regular, place, unique_pairs

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
FORMATS = "give .jsonl, .csv, .tsv, .parquet, .txt, or a folder with a folder of images for each class"
_LONGEST = 1 << 26  # bytes of one line
_BATCH = 256  # rows of parquet decoded at a time


@dataclass(frozen=True, slots=True)
class Found:
    """A row, where it begins (a byte, or its number), its line for messages, and the block that is read as one."""

    begin: int
    line: int
    block: int
    values: Mapping[str, object]


class Reader(Protocol):
    """An opened file of rows."""

    path: Path
    folder: Path  # where relative paths in the rows begin
    unit: str  # what `line` counts

    def rows(self) -> Iterator[Found]:
        """All rows, in their order."""
        ...

    def at(self, begin: int, line: int) -> Mapping[str, object]:
        """The row that begins there."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_reader(path: Path) -> Reader:
    """A reader for what the name says the file is. InvalidInput for a file that is not there or of another kind."""
    if not path.exists():
        raise InvalidInput(f"{place(path)}: does not exist", "check the name of the data file")
    if path.is_dir():
        return _ImageFolder(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _Parquet(path)
    if suffix in (".csv", ".tsv"):
        return _Csv(path, "\t" if suffix == ".tsv" else ",")
    if suffix not in (".jsonl", ".ndjson", ".txt"):
        raise InvalidInput(f"{place(path)}: {printable(suffix) or 'no suffix'} is no known kind of data", FORMATS)
    return _Lines(path, _plain if suffix == ".txt" else _json)


Parsed = tuple[int, int, Mapping[str, object]]  # first byte, line, values


class _Lines:
    """A text file of which each line that is not blank is a row."""

    unit = "line"

    def __init__(self, path: Path, parse: Callable[[str, str], Mapping[str, object]]) -> None:
        self.path, self.folder = path, path.parent
        self._label = f"{place(path)}: line"
        self._parse = parse
        self._file = _open(path)

    def rows(self) -> Iterator[Found]:
        return (Found(begin, line, begin, values) for begin, line, values in self._records(0, 1))

    def at(self, begin: int, line: int) -> Mapping[str, object]:
        for _, _, values in self._records(begin, line):
            return values
        raise self._wrong(line, "is gone: the file has become shorter")

    def close(self) -> None:
        self._file.close()

    def _records(self, begin: int, line: int) -> Iterator[Parsed]:
        for start, number, text in self._lines(begin, line):
            if text.strip():
                yield start, number, self._parse(f"{self._label} {number:,}", text)

    def _lines(self, begin: int, line: int) -> Iterator[tuple[int, int, str]]:
        """(first byte, number, text) of the lines from there on; other readers may seek in between."""
        while True:
            self._file.seek(begin)
            raw = self._file.readline(_LONGEST + 1)
            if not raw:
                return
            if len(raw) > _LONGEST:
                raise self._wrong(line, f"is longer than {_LONGEST:,} bytes")
            try:
                text = raw.decode("utf-8-sig" if begin == 0 else "utf-8")
            except UnicodeDecodeError:
                raise self._wrong(line, "is not UTF-8 text") from None
            yield begin, line, text
            begin, line = begin + len(raw), line + 1

    def _wrong(self, line: int, what: str) -> InvalidInput:
        return InvalidInput(f"{self._label} {line:,} {what}", "mend the file, or leave that line out")


def _open(path: Path) -> io.BufferedReader:
    try:
        return os.fdopen(open_regular(path)[0], "rb")
    except InvalidInput as problem:
        problem.hint = FORMATS
        raise


def _plain(where: str, text: str) -> dict[str, object]:
    return {"text": text.rstrip("\r\n")}


def _json(where: str, text: str) -> dict[str, object]:
    try:
        parsed: object = json.loads(text, object_pairs_hook=unique_pairs)
    except DuplicateKey as error:
        raise InvalidInput(f"{where}: the key {printable(error.key)} occurs twice", "a key names one value") from None
    except RecursionError:
        raise InvalidInput(f"{where}: is nested too deeply to be read", "one flat object a line") from None
    except ValueError as error:
        raise InvalidInput(f"{where}: is not valid JSON: {printable(error)}", "one JSON object a line") from None
    if not isinstance(parsed, dict):
        raise InvalidInput(f"{where}: holds {type(parsed).__name__}, not a JSON object", "one JSON object a line")
    return parsed


class _Csv(_Lines):
    """Comma- or tab-separated records under a header; a quoted field may go over several lines."""

    def __init__(self, path: Path, delimiter: str) -> None:
        super().__init__(path, _plain)
        self._delimiter = delimiter
        self._header: list[str] = []
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def rows(self) -> Iterator[Found]:
        after = ((b, n, v) for b, n, v in self._records(0, 1) if b > self._header_at)
        return (Found(begin, line, begin, values) for begin, line, values in after)

    def _read_header(self) -> None:
        self._header_at = -1
        begin, line, record = next(self._fields(0, 1), (0, 1, []))
        if not record:
            raise InvalidInput(f"{place(self.path)}: is empty", "a header of column names, then one record a line")
        twice = next((name for name in record if record.count(name) > 1), None)
        if twice is not None:
            raise self._wrong(line, f"names the column {printable(twice)!r} twice")
        self._header, self._header_at = record, begin

    def _records(self, begin: int, line: int) -> Iterator[Parsed]:
        for start, number, record in self._fields(begin, line):
            if len(record) != len(self._header):
                told = f"has {len(record)} field{'s' * (len(record) != 1)}, the header has {len(self._header)}"
                raise self._wrong(number, told)
            yield start, number, dict(zip(self._header, record, strict=True))

    def _fields(self, begin: int, line: int) -> Iterator[tuple[int, int, list[str]]]:
        starts: list[tuple[int, int]] = []  # of the lines of the record that is being read

        def texts() -> Iterator[str]:
            for start, number, text in self._lines(begin, line):
                starts.append((start, number))
                yield text

        reader = csv.reader(texts(), strict=True, delimiter=self._delimiter)
        while True:
            starts.clear()
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise self._wrong(starts[0][1], f"is not valid CSV: {printable(error)}") from None
            if record is None:
                return
            if record:
                yield *starts[0], record


class _Parquet:
    """A parquet file; what is read as one is a row group."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        try:
            parquet, arrow = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
        except ImportError:
            fact = f"{place(path)}: reading parquet needs pyarrow, which is not installed"
            raise InvalidInput(fact, "pip install 'paramsmith[parquet]'") from None
        self._problems: tuple[type[Exception], ...] = (arrow.ArrowException, OSError)
        self._opened = _open(path)
        try:
            self._file = parquet.ParquetFile(self._opened)
        except self._problems as error:
            self._opened.close()
            raise self._damaged(error) from None
        groups = range(self._file.num_row_groups)
        self._starts = list(accumulate((self._file.metadata.row_group(g).num_rows for g in groups), initial=0))
        self._group, self._table = -1, self._file.schema_arrow.empty_table()  # the row group that `at` holds

    def rows(self) -> Iterator[Found]:
        try:
            for group, number in enumerate(self._starts[:-1]):
                batches = self._file.iter_batches(_BATCH, row_groups=[group])
                for at, values in enumerate((row for batch in batches for row in batch.to_pylist()), number):
                    yield Found(at, at + 1, group, values)
        except self._problems as error:
            raise self._damaged(error) from None

    def at(self, begin: int, line: int) -> Mapping[str, object]:
        group = bisect_right(self._starts, begin) - 1
        try:
            if self._group != group:
                self._group, self._table = group, self._file.read_row_group(group)
            rows: Sequence[Mapping[str, object]] = self._table.slice(begin - self._starts[group], 1).to_pylist()
        except self._problems as error:
            raise self._damaged(error) from None
        return rows[0]

    def close(self) -> None:
        self._file.close()
        self._opened.close()

    def _damaged(self, error: Exception) -> InvalidInput:
        return InvalidInput(f"{place(self.path)}: is no sound parquet file: {printable(error)}", "make it again")


class _ImageFolder:
    """A folder with a folder of images for each class: rows of `image`, its path in there, and `label`."""

    unit = "image"

    def __init__(self, path: Path) -> None:
        self.path = self.folder = path
        classes = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not classes:
            raise InvalidInput(f"{place(path)}: holds no folder for any class", FORMATS)
        self._images = [image for folder in classes for image in _images(folder)]

    def rows(self) -> Iterator[Found]:
        return (Found(number, number + 1, number, self.at(number, 0)) for number in range(len(self._images)))

    def at(self, begin: int, line: int) -> Mapping[str, object]:
        image = self._images[begin]
        return {"image": image.relative_to(self.path), "label": image.parent.name}

    def close(self) -> None:
        """Nothing is open."""


def _images(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    if not found:
        raise InvalidInput(f"{place(folder)}: holds no images", f"of these kinds: {' '.join(sorted(IMAGES))}")
    return found
