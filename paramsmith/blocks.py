"""Cut tensors into blocks: what one worker reads, computes and writes at a time.

A block is a list of spans. Large tensors are cut into runs of `size` elements, counted from their first; small ones of
one group are packed together. Reductions are made per canonical cut of CUT elements, so that they do not depend on
`size`, which is a multiple of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

CUT = 1 << 16


class Sized(Protocol):
    """Anything with a number of elements."""

    @property
    def count(self) -> int:
        """Elements of the tensor."""
        ...


T = TypeVar("T", bound=Sized)
T_co = TypeVar("T_co", bound=Sized, covariant=True)


@dataclass(frozen=True, slots=True)
class Span(Generic[T_co]):
    """Elements [start, start + count) of one tensor, at `at` in the block."""

    task: T_co
    start: int
    count: int
    at: int


@dataclass(frozen=True, slots=True)
class Block(Generic[T_co]):
    """Spans side by side; all of one group, so that one kernel serves them."""

    spans: tuple[Span[T_co], ...]
    count: int

    @property
    def task(self) -> T_co:
        """The first span's tensor: all that matters when blocks are not packed."""
        return self.spans[0].task


def cut(
    tasks: Iterable[T], size: int, group: Callable[[T], Hashable] | None = None, align: int = 1
) -> Iterator[Block[T]]:
    """Blocks of at most `size` elements, in the order of the tensors.

    Tensors of fewer than size/4 elements are packed with others of their group; without `group` nothing is packed. With
    `align` a block holds a multiple of it, or less than one (the rest at a tensor's end).
    """
    open_packs: dict[Hashable, list[Span[T]]] = {}
    for task in tasks:
        if group is not None and task.count <= size // 4:
            key = group(task)
            pack = open_packs.setdefault(key, [])
            filled = pack[-1].at + pack[-1].count if pack else 0
            if filled + task.count > size:
                yield Block(tuple(pack), filled)
                pack.clear()
                filled = 0
            pack.append(Span(task, 0, task.count, filled))
        else:
            yield from _runs(task, size, align)
    yield from (Block(tuple(p), p[-1].at + p[-1].count) for p in open_packs.values() if p)


def _runs(task: T, size: int, align: int) -> Iterator[Block[T]]:
    whole = task.count - task.count % align
    for start in range(0, whole, size):
        count = min(size, whole - start)
        yield Block((Span(task, start, count, 0),), count)
    if whole < task.count:
        yield Block((Span(task, whole, task.count - whole, 0),), task.count - whole)


def sample(tasks: Sequence[T], wanted: int, size: int, chunk: int = 1024) -> Iterator[Block[T]]:
    """Chunks at equal distances over all tensors, about `wanted` elements in all, in blocks of at most `size`."""
    total = sum(task.count for task in tasks)
    stride = max(chunk, total // max(1, wanted // chunk))
    pack: list[Span[T]] = []
    filled, place = 0, stride // 2
    for task in tasks:
        while place < task.count:
            count = min(chunk, task.count - place)
            if filled + count > size:
                yield Block(tuple(pack), filled)
                pack, filled = [], 0
            pack.append(Span(task, place, count, filled))
            filled += count
            place += stride
        place -= task.count
    if pack:
        yield Block(tuple(pack), filled)
