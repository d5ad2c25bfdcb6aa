"""The networks that an index lists: the headers of their files, opened once each, and their architectures."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, ParamsmithError, printable
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.describe import spec_of_checkpoint
from paramsmith.hypernet.targets.statistics import with_statistics
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.inputs import place

from .conditions import ConditionFiles
from .files import Place, on_hub, told_as
from .index import INDEX, Entry

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Member:
    """One network of a zoo; `label` is its path as the index has it, and its row; `path` is where it lies here.

    `fingerprint` tells its file from another. A network of the Hub has the commit that was found in its path.
    """

    label: str
    path: Path
    spec: TargetSpec
    condition: Condition
    entry: Entry
    fingerprint: Mapping[str, object] = field(repr=False)

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return sum(math.prod(slot.shape) for slot in self.spec.slots)

    @property
    def identity(self) -> Mapping[str, object]:
        """What tells its content from another beside its label: nothing where that has a commit."""
        return {} if on_hub(self.entry.path) else self.fingerprint


def members_of(
    folder: Path,
    entries: Sequence[Entry],
    files: ConditionFiles,
    targets: Sequence[TargetSpec],
    places: Mapping[str, Place],
) -> Iterator[Member]:
    """What the entries of a zoo stand for. InvalidInput names the entry that is wrong.

    A target that has the tensors of a network, for whatever number of classes, is its spec.
    """
    known = _Known(folder, targets, places)
    for given in entries:
        spec, fingerprint = known.file(given)
        at = places[given.path]
        entry = given if at.pinned == given.path else given.model_copy(update={"path": at.pinned})
        yield Member(entry.label, at.path, spec, files.of(entry), entry, fingerprint)


def check_same(first: Member, other: Member) -> None:
    """InvalidInput, naming the tensor, where two networks are of different architectures."""
    if first.spec is other.spec or shapes_of(first.spec) == shapes_of(other.spec):
        return
    held, found = shapes_of(first.spec), shapes_of(other.spec)
    lacking = next((name for name in held if name not in found), None)
    strange = next((name for name in found if name not in held), None)
    if lacking or strange:
        told = f"has no tensor {printable(lacking)}" if lacking else f"has a tensor {printable(strange)} besides"
    else:
        name = next(name for name in held if held[name] != found[name])
        told = f"{printable(name)} has the shape {list(found[name])}, not {list(held[name])}"
    fact = f"{printable(other.label)}: is of another architecture than {printable(first.label)}: {told}"
    raise InvalidInput(fact, "keep a zoo for each architecture, or use a generator for any")


def shapes_of(spec: TargetSpec) -> Shapes:
    """The shape of each tensor."""
    return {slot.name: slot.shape for slot in spec.slots}


def but_for_classes(spec: TargetSpec, shapes: Shapes) -> TargetSpec | None:
    """The target with the number of classes that tensors of these shapes have; None where they are of another."""
    head = next((slot for slot in spec.slots if slot.class_axis is not None), None)
    if head is None or head.class_axis is None or len(shapes.get(head.name, ())) != len(head.shape):
        return None
    classes = shapes[head.name][head.class_axis]
    made = spec.with_classes(classes) if classes else None
    return made if made is not None and shapes_of(made) == shapes else None


class _Known:
    """The files of a zoo that were opened already, by path and by whether they hold one network or a row each."""

    def __init__(self, folder: Path, targets: Sequence[TargetSpec], places: Mapping[str, Place]) -> None:
        self.folder, self.places = folder, places
        # networks may have been written without the statistics of their norms
        self.targets = [one for target in targets for one in dict.fromkeys((with_statistics(target), target))]
        self._files: dict[tuple[str, bool], tuple[TargetSpec, Mapping[str, object], int]] = {}

    def file(self, entry: Entry) -> tuple[TargetSpec, Mapping[str, object]]:
        """The architecture of one network, and what tells the file from others."""
        key = entry.path, entry.row is not None
        if key not in self._files:
            at = self.places[entry.path]
            try:
                self._files[key] = self._opened(entry, at.path)
            except ParamsmithError as problem:
                raise told_as(problem, entry.path, at) from None
        spec, fingerprint, rows = self._files[key]
        if entry.row is not None and entry.row >= rows:
            fact = f"{place(self.folder / INDEX)}: {printable(entry.path)} has {rows:,} rows, and no row {entry.row:,}"
            raise InvalidInput(fact, "rows are counted from 0")
        return spec, fingerprint

    def _opened(self, entry: Entry, path: Path) -> tuple[TargetSpec, Mapping[str, object], int]:
        with Checkpoint.open(path) as opened:
            rows = 0 if entry.row is None else _rows(path, opened)
            try:
                spec = spec_of_checkpoint(opened if entry.row is None else _one_row(opened))
            except InvalidInput as problem:
                raise InvalidInput(f"{printable(entry.path)}: {problem.fact}", problem.hint) from None
            return self._named(spec), opened.fingerprint(), rows

    def _named(self, spec: TargetSpec) -> TargetSpec:
        """The target that is known to have these tensors, or what names and shapes tell; with its statistics."""
        spec = with_statistics(spec)
        shapes = shapes_of(spec)
        for target in self.targets:
            if shapes_of(target) == shapes:
                return target
        return next((made for t in self.targets if (made := but_for_classes(t, shapes)) is not None), spec)


def _rows(path: Path, opened: Checkpoint) -> int:
    """How many networks are stacked in a file."""
    lengths = {info.shape[0] if info.shape else 0 for info in opened.tensors.values()}
    if len(lengths) != 1 or not min(lengths):
        told = f"has tensors of {' and '.join(map(str, sorted(lengths)[:3])) or 'no'} rows"
        raise InvalidInput(f"{place(path)}: {told}", "in a stacked file each has a first axis of networks")
    return lengths.pop()


def _one_row(opened: Checkpoint) -> Checkpoint:
    """What the header would say of the first network alone."""
    one = copy.copy(opened)
    one.tensors = {
        name: replace(info, shape=info.shape[1:], nbytes=info.nbytes // info.shape[0])
        for name, info in opened.tensors.items()
    }
    return one
