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

_RUN = 1 << 25  # bytes of one tensor read at once


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

    def _fill(self, made: dict[str, Tensor], members: Sequence[Member], order: list[int]) -> None:
        """Read those of one file, in the order of their rows."""
        member = members[order[0]]
        with Checkpoint.open(member.path) as opened:
            if opened.fingerprint() != member.fingerprint:
                fact = f"{printable(member.entry.path)}: changed since the zoo was opened"
                raise Failed(fact, "leave the zoo alone during a run")
            for name, tensor in made.items():
                for places in _runs(members, order, _row_bytes(opened, name, member)):
                    rows = [members[i].entry.row or 0 for i in places]
                    values = _read(opened, name, member, range(rows[0], rows[-1] + 1))
                    self.read += values.nbytes
                    within = [row - rows[0] for row in rows]
                    tensor[places] = _finite(values, name, [members[i] for i in places], within).float()

    def _keep(self, member: Member, made: dict[str, Tensor], i: int) -> None:
        size = 4 * member.numbers
        if size > self.budget or member.label in self._kept:
            return
        while self.held + size > self.budget:
            _, dropped = self._kept.popitem(last=False)
            self.held -= sum(tensor.nbytes for tensor in dropped.values())
        self._kept[member.label] = {name: tensor[i].clone() for name, tensor in made.items()}
        self.held += size


def _runs(members: Sequence[Member], order: Sequence[int], row_bytes: int) -> Iterator[list[int]]:
    """Networks in the order of their rows, cut where a row is left out, or more would be read at once than may be."""
    most = max(1, _RUN // max(1, row_bytes))
    run: list[int] = []
    for i in order:
        row = members[i].entry.row or 0
        if run and (row > (members[run[-1]].entry.row or 0) + 1 or row - (members[run[0]].entry.row or 0) >= most):
            yield run
            run = []
        run.append(i)
    yield run


def _row_bytes(opened: Checkpoint, name: str, member: Member) -> int:
    info = opened.info(name)
    if info is None:
        raise ValueError(f"{printable(member.label)}: has no tensor {printable(name)}")
    return info.nbytes if member.entry.row is None else info.nbytes // info.shape[0]


def _read(opened: Checkpoint, name: str, member: Member, run: range) -> Tensor:
    """(rows, *shape), as they are stored."""
    info = opened.info(name)
    if info is None:
        raise ValueError(f"{printable(member.label)}: has no tensor {printable(name)}")
    shape = (1, *info.shape) if member.entry.row is None else (len(run), *info.shape[1:])
    values = torch.empty(shape, dtype=torch_dtype(info.dtype))
    if values.numel():
        opened.read_into(name, run.start * _row_bytes(opened, name, member), as_bytes(values))
    return values


def _finite(values: Tensor, name: str, members: Sequence[Member], rows: Sequence[int]) -> Tensor:
    """The rows of these networks. InvalidInput names the one that is not finite."""
    chosen = values if list(rows) == list(range(len(values))) else values[list(rows)]
    good = torch.isfinite(chosen.float().flatten(1)).all(1)
    if not bool(good.all()):
        label = members[int((~good).nonzero()[0])].label
        fact = f"{printable(label)}: tensor {printable(name)} holds values that are not finite"
        raise InvalidInput(fact, "leave this checkpoint out of the zoo")
    return chosen
