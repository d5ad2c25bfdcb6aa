"""A zoo: a folder of trained checkpoints, and what is known of each.

Every checkpoint in the folder counts, or those that `zoo.jsonl` lists, one a line:

    {"path": "seed3.safetensors", "condition": {"vector": [0.3, 1]}, "task": "digits", "run": "3",
     "metrics": {"accuracy": 0.93}, "split": "test"}

Only `path` is needed. A condition of numbers alone is called `vector`. Headers are read, data when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.evaluation.starts import distance
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.describe import spec_of_checkpoint
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.inputs import place
from paramsmith.memory import as_bytes

INDEX = "zoo.jsonl"
Split = Literal["train", "test"]
_MAX_INDEX = 100_000_000


class Entry(BaseModel):
    """A line of zoo.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = Field(min_length=1, max_length=4000)
    condition: dict[str, object] | list[object] | float | None = None
    task: str | None = None
    run: str | int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    split: Split = "train"


@dataclass(frozen=True)
class Member:
    """One checkpoint of a zoo; `label` is its path within it, `fingerprint` what tells it from another."""

    label: str
    path: Path
    spec: TargetSpec
    condition: Condition
    entry: Entry
    fingerprint: Mapping[str, object] = field(repr=False)


class Zoo:
    """Checkpoints, in the order of `zoo.jsonl` or of their names."""

    def __init__(self, folder: Path, members: Sequence[Member]) -> None:
        self.folder = folder
        self.members = tuple(members)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], like: TargetSpec | None = None) -> Zoo:
        """Read the headers. InvalidInput names the file, or the line, that is wrong.

        Where `like` has the tensors of a checkpoint, it is its spec: it knows their order, and the graph.
        """
        place_of = Path(folder)
        if not place_of.is_dir():
            kind = "is no folder" if place_of.exists() else "does not exist"
            raise InvalidInput(f"{place(place_of)}: {kind}", "a zoo is a folder of checkpoints")
        listed = place_of / INDEX
        entries = list(_lines(listed)) if listed.exists() else list(_found(place_of))
        if not entries:
            where = place(listed) if listed.exists() else place(place_of)
            raise InvalidInput(f"{where}: has no checkpoints", "put .safetensors files or model folders there")
        members = [_member(place_of, entry, like) for entry in entries]
        _check_alike(members)
        return cls(place_of, members)

    def __len__(self) -> int:
        return len(self.members)

    def of(self, split: Split) -> tuple[Member, ...]:
        """Those of a split."""
        return tuple(member for member in self.members if member.entry.split == split)

    @property
    def site(self) -> Site:
        """The target, None where there are several architectures, and the condition's shapes."""
        spec = self.members[0].spec
        same = all(member.spec.hash == spec.hash for member in self.members)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.members[0].condition.items()}
        return Site(0, spec if same else None, shapes)

    @cached_property
    def digest(self) -> str:
        """Tells this zoo from others, and from itself after a change."""
        told = [[m.label, m.entry.model_dump(mode="json"), m.fingerprint] for m in self.members]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def load(self, member: Member) -> dict[str, Tensor]:
        """The slots of a checkpoint in fp32. InvalidInput for one that is not finite."""
        with Checkpoint.open(member.path) as opened:
            return {slot.name: _read(opened, slot.name, member) for slot in member.spec.slots}

    def load_all(self, split: Split = "train") -> Iterator[tuple[Member, dict[str, Tensor]]]:
        """Each checkpoint of a split with its tensors, one after the other."""
        for member in self.of(split):
            yield member, self.load(member)

    def mean(self, split: Split = "train") -> dict[str, Tensor]:
        """The mean of each tensor, in fp32, of checkpoints of one architecture; summed in fp64."""
        sums: dict[str, Tensor] = {}
        first: Member | None = None
        for member, tensors in self.load_all(split):
            first = first or member
            check_same(first, member)
            for name, tensor in tensors.items():
                sums[name] = tensor.double() if name not in sums else sums[name].add_(tensor)
        if not sums:
            raise InvalidInput(f"{place(self.folder)}: has no checkpoints to {split} on", f'"split": "{split}"')
        return {name: (total / len(self.of(split))).float() for name, total in sums.items()}

    def nearest(self, condition: Condition | None = None, spec: TargetSpec | None = None) -> Member:
        """Of those to train on, the one with the nearest architecture, and among these the nearest condition.

        Conditions are compared after each number was divided by its standard deviation over the zoo.
        """
        known = self.of("train") or self.members
        gaps = [0.0 if spec is None else distance(member.spec, spec) for member in known]
        near = [member for member, gap in zip(known, gaps, strict=True) if gap == min(gaps)]
        if not condition:
            return near[0]
        held = torch.stack([_flat(member.condition) for member in known])  # (members, numbers)
        spread = held.std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        asked = _flat(condition)
        return min(near, key=lambda member: float(((_flat(member.condition) - asked) / spread).norm()))


def check_same(first: Member, other: Member) -> None:
    """InvalidInput, naming the tensor, where two checkpoints are of different architectures."""
    if _shapes(first.spec) == _shapes(other.spec):
        return
    held, found = _shapes(first.spec), _shapes(other.spec)
    lacking = next((name for name in held if name not in found), None)
    strange = next((name for name in found if name not in held), None)
    if lacking or strange:
        told = f"has no tensor {printable(lacking)}" if lacking else f"has a tensor {printable(strange)} besides"
    else:
        name = next(name for name in held if held[name] != found[name])
        told = f"{printable(name)} has the shape {list(found[name])}, not {list(held[name])}"
    fact = f"{printable(other.label)}: is of another architecture than {printable(first.label)}: {told}"
    raise InvalidInput(fact, "keep a zoo for each architecture, or use a generator for any")


def _lines(path: Path) -> Iterator[Entry]:
    if path.stat().st_size > _MAX_INDEX:
        raise InvalidInput(f"{place(path)}: is larger than {_MAX_INDEX:,} bytes", "it has a line a checkpoint")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield Entry.model_validate_json(line)
            except ValidationError as problem:
                error = problem.errors(include_url=False, include_input=False)[0]
                where = ".".join(printable(part, 60) for part in error["loc"][:3])
                told = f"{where}: {printable(error['msg'], 200)}" if where else printable(error["msg"], 200)
                raise InvalidInput(
                    f"{place(path)}, line {number}: {told}", 'for example {"path": "a.safetensors"}'
                ) from None


def _found(folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors*"))):
            yield Entry(path=path.name)


def _member(folder: Path, entry: Entry, like: TargetSpec | None) -> Member:
    path = folder / entry.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidInput(
            f"{place(folder / INDEX)}: {printable(entry.path)} lies outside the zoo", "use paths within it"
        )
    condition = _condition(entry, folder)
    with Checkpoint.open(path) as opened:
        try:
            spec = spec_of_checkpoint(opened)
        except InvalidInput as problem:
            raise InvalidInput(f"{printable(entry.path)}: {problem.fact}", problem.hint) from None
        if like is not None and _shapes(like) == _shapes(spec):
            spec = like
        return Member(entry.path, path, spec, condition, entry, opened.fingerprint())


def _condition(entry: Entry, folder: Path) -> dict[str, Tensor]:
    given = entry.condition
    if given is None:
        return {}
    named = given if isinstance(given, dict) else {"vector": given}
    made: dict[str, Tensor] = {}
    for name, value in named.items():
        try:
            tensor = torch.tensor([value] if isinstance(value, int | float) else value, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError):
            tensor = torch.tensor(math.nan)
        if not bool(torch.isfinite(tensor).all()):
            fact = f"{place(folder / INDEX)}: the condition {printable(name)} of {printable(entry.path)} is no numbers"
            raise InvalidInput(fact, "give finite numbers: [0.3, 1]")
        made[name] = tensor
    return made


def _check_alike(members: Sequence[Member]) -> None:
    first = members[0]
    shapes = {name: tensor.shape for name, tensor in first.condition.items()}
    for member in members[1:]:
        if {name: tensor.shape for name, tensor in member.condition.items()} != shapes:
            fact = f"{printable(member.label)}: its condition is not of the shape of {printable(first.label)}'s"
            raise InvalidInput(fact, "say the same of every checkpoint")


def _read(opened: Checkpoint, name: str, member: Member) -> Tensor:
    info = opened.tensors[name]
    held = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
    opened.read_into(name, 0, as_bytes(held))
    tensor = held.float()
    if not bool(torch.isfinite(tensor).all()):
        fact = f"{printable(member.label)}: tensor {printable(name)} holds values that are not finite"
        raise InvalidInput(fact, "leave this checkpoint out of the zoo")
    return tensor


def _shapes(spec: TargetSpec) -> dict[str, tuple[int, ...]]:
    return {slot.name: slot.shape for slot in spec.slots}


def _flat(condition: Condition) -> Tensor:
    return torch.cat([condition[name].flatten().float() for name in sorted(condition)] or [torch.zeros(0)])
