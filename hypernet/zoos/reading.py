"""Reading networks of a zoo, many at once: rows side by side in one read, what was used last in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.memory import as_bytes

from .member import Member, check_same


class Reader:
    """The tensors of networks, fp32. `budget` bounds the bytes that stay in memory; `held` is how many do."""

    def __init__(self, budget: int) -> None:
        self.budget, self.held, self.read = budget, 0, 0
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def batch(self, members: Sequence[Member]) -> dict[str, Tensor]:
        """(B, *shape) by slot, of networks of one architecture. InvalidInput for values that are not finite."""
        first = members[0]
        for member in members:
            check_same(first, member)
        made = {slot.name: torch.empty(len(members), *slot.shape) for slot in first.spec.slots}
        missing: dict[object, list[int]] = {}
        for i, member in enumerate(members):
            kept = self._kept.get(member.label)
            if kept is None:
                missing.setdefault((member.path, member.entry.row is None), []).append(i)
                continue
            self._kept.move_to_end(member.label)
            for name, tensor in kept.items():
                made[name][i] = tensor
        for numbers in missing.values():
            self._fill(made, members, sorted(numbers, key=lambda i: members[i].entry.row or 0))
        for i in (i for numbers in missing.values() for i in numbers):
            self._keep(members[i], made, i)
        return made

    def _fill(self, made: dict[str, Tensor], members: Sequence[Member], places: list[int]) -> None:
        """Read those of one file, in the order of their rows, each once."""
        member = members[places[0]]
        numbers = [members[i].entry.row or 0 for i in places]
        rows = sorted(set(numbers))
        labels = {row: members[i].label for row, i in zip(numbers, places, strict=True)}
        at = {row: i for i, row in enumerate(rows)}
        order = [at[row] for row in numbers] if len(rows) < len(numbers) else None
        with Checkpoint.open(member.path) as opened:
            if opened.fingerprint() != member.fingerprint:
                fact = f"{printable(member.entry.path)}: changed since the zoo was opened"
                raise Failed(fact, "leave the zoo alone during a run")
            for name, tensor in made.items():
                values = _read(opened, name, rows, stacked=member.entry.row is not None)  # (rows, *shape)
                self.read += values.nbytes
                good = torch.isfinite(values.float().flatten(1)).all(1)
                if not bool(good.all()):
                    label = labels[rows[int((~good).nonzero()[0])]]
                    fact = f"{printable(label)}: tensor {printable(name)} holds values that are not finite"
                    raise InvalidInput(fact, "leave this checkpoint out of the zoo")
                tensor[places] = (values if order is None else values[order]).float()

    def _keep(self, member: Member, made: dict[str, Tensor], i: int) -> None:
        size = 4 * member.numbers
        if size > self.budget or member.label in self._kept:
            return
        while self.held + size > self.budget:
            _, dropped = self._kept.popitem(last=False)
            self.held -= sum(tensor.nbytes for tensor in dropped.values())
        self._kept[member.label] = {name: tensor[i].clone() for name, tensor in made.items()}
        self.held += size


def _read(opened: Checkpoint, name: str, rows: Sequence[int], *, stacked: bool) -> Tensor:
    """Rows of a tensor, (rows, *shape) as they are stored; those without a hole between them in one read."""
    info = opened.info(name)
    if info is None:
        raise ValueError(f"{printable(opened.label)}: has no tensor {printable(name)}")
    values = torch.empty((len(rows), *(info.shape[1:] if stacked else info.shape)), dtype=torch_dtype(info.dtype))
    if values.numel():
        size, held = values.nbytes // len(rows), as_bytes(values)
        for start, stop in _runs(rows):
            opened.read_into(name, rows[start] * size, held[start * size : stop * size])
    return values


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where in sorted rows each stretch of consecutive ones begins and ends.

    >>> list(_runs([3, 4, 5, 9]))
    [(0, 3), (3, 4)]
    """
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield start, i
            start = i
