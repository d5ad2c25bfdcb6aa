"""A checkpoint with another vocabulary: rows copied, predicted or drawn, everything else as it is, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import InvalidInput
from paramsmith.header import TensorInfo, TensorSpec
from paramsmith.hypernet.seeding import normal
from paramsmith.memory import as_bytes
from paramsmith.progress import Progress

from .asking import inverse
from .factorise import even_weights
from .matrices import CHUNK, Matrices

if TYPE_CHECKING:
    from paramsmith.staging import Writer

_COPY = 1 << 22  # bytes copied at once


@dataclass(frozen=True)
class Expansion:
    """Where each row of the new vocabulary comes from.

    `copied` (rows): the source's row, or -1; `made` (rows): the place in `coordinates` (n, rank), or -1, where
    row = coordinates @ primitives, or the coordinates themselves where there are none. All others are drawn from
    N(mean, std) of each column over the first `known` rows of the source, by `seed`. Biases that are not copied have
    the mean.
    """

    source: Matrices
    known: int
    copied: Tensor
    made: Tensor
    coordinates: Tensor
    primitives: Tensor | None = None  # (rank, columns)
    seed: int = 0
    factorised: bool = False

    def __post_init__(self) -> None:
        """InvalidInput for what cannot be kept as factors; ValueError for places that are none."""
        if self.factorised and self.primitives is None:
            raise InvalidInput("a factorised embedding needs a rank", "give one, or write whole rows")
        if not len(self.copied) or int(self.copied.max()) >= self.source.rows:
            raise ValueError("a row is copied that the source does not have")

    @property
    def rows(self) -> int:
        """Rows of the new vocabulary."""
        return len(self.copied)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows are copied, predicted and drawn."""
        copied, made = int((self.copied >= 0).sum()), int((self.made >= 0).sum())
        return {"copied": copied, "predicted": made, "drawn": self.rows - copied - made}

    def specs(self) -> list[TensorSpec]:
        """All tensors of the output, in the order of the source."""
        found: list[TensorSpec] = []
        matrices = {info.name for info in self.source.matrices}
        biases = {info.name for info in self.source.biases}
        for info in self.source.checkpoint.tensors.values():
            if info.name in matrices and self.factorised:
                found += self._factors(info)
            elif info.name in matrices or info.name in biases:
                shape = (self.rows, *info.shape[1:]) if info.name in matrices else (*info.shape[:-1], self.rows)
                found.append(TensorSpec(info.name, info.dtype, shape))
            else:
                found.append(TensorSpec(info.name, info.dtype, info.shape))
        return found

    def fill(self, writer: Writer, progress: Progress | None = None) -> None:
        """Write every tensor, some rows or some megabytes at a time; what an interrupted run wrote is left as it is."""
        total = sum(spec.nbytes for spec in self.specs())
        done = writer.resumed_bytes
        with one_thread_an_operation():
            for name, start, data in self._pieces(writer):
                if data is not None:
                    writer.write(name, start, data)
                    writer.finish([(name, start, start + data.nbytes)])
                    done += data.nbytes
                if progress is not None:
                    progress(min(done, total), total)

    def _pieces(self, writer: Writer) -> Iterator[tuple[str, int, memoryview | None]]:
        special = {info.name for info in (*self.source.matrices, *self.source.biases)}
        for info in self.source.checkpoint.tensors.values():
            if info.name not in special:
                yield from self._as_it_is(info, writer)
        for info in self.source.biases:
            yield info.name, 0, as_bytes(self._bias(info))
        for start in range(0, self.rows, CHUNK):
            end = min(start + CHUNK, self.rows)
            if self.factorised:
                yield from self._factor_rows(start, end)
            else:
                yield from self._whole_rows(start, end, writer)
        if self.factorised:
            for name, part in self.source.parts(self._known_primitives).items():
                made = part.mT.contiguous()  # (width, rank), as a linear layer has it
                yield _named(name, "primitives"), 0, as_bytes(made.to(self._dtype(name)))

    def _as_it_is(self, info: TensorInfo, writer: Writer) -> Iterator[tuple[str, int, memoryview | None]]:
        held = bytearray(min(_COPY, info.nbytes))
        for start in range(0, info.nbytes, _COPY):
            end = min(start + _COPY, info.nbytes)
            if not writer.is_finished(info.name, start, end):
                view = memoryview(held)[: end - start]
                self.source.checkpoint.read_into(info.name, start, view)
                yield info.name, start, view

    def _whole_rows(self, start: int, end: int, writer: Writer) -> Iterator[tuple[str, int, memoryview]]:
        sizes = {i.name: i.shape[1] * i.dtype.bits // 8 for i in self.source.matrices}
        if all(writer.is_finished(name, start * size, end * size) for name, size in sizes.items()):
            return
        wide = self._new_rows(start, end)  # (end - start, columns)
        parts = self.source.parts(wide)
        for info in self.source.matrices:
            values = parts[info.name].to(torch_dtype(info.dtype)).contiguous()
            for at, row, count in runs(self.copied[start:end]):
                values[at : at + count] = self.source.read(info, row, row + count)
            yield info.name, start * sizes[info.name], as_bytes(values)

    def _new_rows(self, start: int, end: int) -> Tensor:
        """(end - start, columns) float32: what is predicted, and what is drawn; anything where rows are copied."""
        mean, std = self._moments
        wide = mean + std * normal(self.seed, "new rows", (end - start, len(mean)), first=start)
        there, found = self._made(start, end)
        wide[there] = found if self.primitives is None else found @ self.primitives
        return wide

    def _made(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        places = self.made[start:end]
        return places >= 0, self.coordinates[places[places >= 0]]

    def _factor_rows(self, start: int, end: int) -> Iterator[tuple[str, int, memoryview]]:
        mean, std = self._moments
        rows = mean + std * normal(self.seed, "new rows", (end - start, len(mean)), first=start)
        there, found = self._made(start, end)
        rows[there] = found
        for at, row, count in runs(self.copied[start:end]):
            held = self.source.side_by_side(self.source.rows).between(row, row + count)
            rows[at : at + count] = held @ self._onto
        first = self.source.matrices[0]
        values = rows.to(self._dtype(first.name))
        yield _named(first.name, "coordinates"), start * values[0].nbytes, as_bytes(values)

    def _bias(self, info: TensorInfo) -> Tensor:
        old = self.source.read(info, 0, info.shape[0]).view(-1)
        new = old[: self.known].double().mean().to(old.dtype).expand(self.rows).clone()
        there = self.copied >= 0
        new[there] = old[self.copied[there]]
        return new

    def _factors(self, info: TensorInfo) -> Iterable[TensorSpec]:
        rank = len(self._known_primitives)
        if info is self.source.matrices[0]:
            yield TensorSpec(_named(info.name, "coordinates"), info.dtype, (self.rows, rank))
        yield TensorSpec(_named(info.name, "primitives"), info.dtype, (info.shape[1], rank))

    def _dtype(self, name: str) -> torch.dtype:
        return torch_dtype(self.source.checkpoint.tensors[name].dtype)

    @property
    def _known_primitives(self) -> Tensor:
        if self.primitives is None:
            raise ValueError("there are no primitives")
        return self.primitives

    @cached_property
    def _onto(self) -> Tensor:
        squares = self.source.side_by_side(self.known).squares()
        return inverse(self._known_primitives, even_weights(squares, self.source.widths))

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Of what is drawn: rows, or coordinates."""
        return self.source.side_by_side(self.known).moments(self._onto if self.factorised else None)


def places(rows: int, copied: Mapping[int, int], made: Tensor) -> tuple[Tensor, Tensor]:
    """`copied` and `made` of an Expansion: {new row: source row}, and the new rows of coordinates in their order.

    >>> [found.tolist() for found in places(4, {0: 7}, torch.tensor([2, 1]))]
    [[7, -1, -1, -1], [-1, 1, 0, -1]]
    """
    rows_copied = torch.full((rows,), -1, dtype=torch.int64)
    if copied:
        rows_copied[torch.tensor(list(copied))] = torch.tensor(list(copied.values()))
    rows_made = torch.full((rows,), -1, dtype=torch.int64)
    rows_made[made] = torch.arange(len(made))
    if bool(((rows_copied >= 0) & (rows_made >= 0)).any()):
        raise ValueError("a row is both copied and made")
    return rows_copied, rows_made


def runs(copied: Tensor) -> Iterator[tuple[int, int, int]]:
    """(place, source row, count) of stretches that lie together in both; -1 is not copied.

    >>> list(runs(torch.tensor([5, 6, -1, 9, 8])))
    [(0, 5, 2), (3, 9, 1), (4, 8, 1)]
    """
    start = 0
    held = copied.tolist()
    for place in range(1, len(held) + 1):
        if place < len(held) and held[start] >= 0 and held[place] == held[place - 1] + 1:
            continue
        if held[start] >= 0:
            yield start, held[start], place - start
        start = place


def _named(name: str, factor: str) -> str:
    """The name of a factor of a matrix.

    >>> _named("wte.weight", "coordinates")
    'wte.coordinates.weight'
    """
    return f"{name.removesuffix('.weight')}.{factor}.weight"
