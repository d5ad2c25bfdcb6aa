"""A zoo: a folder of trained checkpoints, and what is known of each.

Every checkpoint in the folder counts, or those that `zoo.jsonl` lists, one a line:

    {"path": "seed3.safetensors", "condition": {"vector": [0.3, 1]}, "task": "digits", "run": "3",
     "metrics": {"accuracy": 0.93}, "split": "test"}

Only `path` is needed. A condition of numbers alone is called `vector`. Thousands of small networks may be one file,
each tensor of which has a first axis of networks: `"row": 7` is the eighth. `targets.json` may say what the networks
are, with their graphs and heads. Headers are read, data when it is asked for.

A path may be `hf://user/repo@revision`, of the Hub: it is fetched when the zoo is opened, and means the commit that the
revision had then, which `zoo split` writes into the index.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Site, Task
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.inputs import place
from paramsmith.progress import Progress

from .conditions import ConditionFiles, Conditions
from .digest import digest_of
from .files import on_hub, places_of
from .index import INDEX, Entry, Split, found_in, pickles_in, read_index
from .member import Member, but_for_classes, check_same, members_of, shapes_of
from .reading import Reader
from .targetfile import TARGETS, read_targets

__all__ = ["Entry", "Member", "Split", "Zoo", "check_same"]

MEMORY = 1 << 30  # bytes of weights that stay in memory
_TOGETHER = 1 << 24  # numbers read at once where the caller does not say how many networks


class Zoo:
    """Trained networks, in the order of `zoo.jsonl` or of their names.

    `memory` bounds the bytes of weights that are kept once they were read. `task` may be set to what the networks
    were trained for: then a codec is judged by what they can do.
    """

    task: Task | None = None

    def __init__(self, folder: Path, members: Sequence[Member], memory: int = MEMORY) -> None:
        self.folder = folder
        self.members = tuple(members)
        self.reader = Reader(memory)
        self.hashes: dict[str, str | None] = {}  # of its networks, by label, as `contents.digests` finds them
        self._sound: set[str] = set()  # networks of the Hub that are what the index says

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        like: TargetSpec | None = None,
        *,
        memory: int = MEMORY,
        progress: Progress | None = None,
    ) -> Zoo:
        """Read the headers, and fetch what is on the Hub. InvalidInput names the file, or the line, that is wrong.

        Where `like` has the tensors of a checkpoint, it is its spec: it knows their order, the graph and the head.
        `progress` counts the bytes that come.
        """
        where = Path(folder)
        if not where.is_dir():
            kind = "is no folder" if where.exists() else "does not exist"
            raise InvalidInput(f"{place(where)}: {kind}", "a zoo is a folder of checkpoints")
        listed = where / INDEX
        entries = list(read_index(listed)) if listed.exists() else list(found_in(where))
        if not entries:
            told = place(listed) if listed.exists() else place(where)
            hint = "put .safetensors files or model folders there"
            pickled = [] if listed.exists() else pickles_in(where)
            if pickled:
                hint = f"{printable(pickled[0])} is a pickle, which could run code: convert it to safetensors"
            raise InvalidInput(f"{told}: has no checkpoints", hint)
        targets = [*([] if like is None else [like]), *read_targets(where / TARGETS)]
        members = list(members_of(where, entries, ConditionFiles(where), targets, places_of(where, entries, progress)))
        _check_conditions(members)
        _check_apart(members)
        return cls(where, members, memory)

    def __len__(self) -> int:
        return len(self.members)

    def of(self, split: Split) -> tuple[Member, ...]:
        """Those of a split."""
        return tuple(member for member in self.members if member.entry.split == split)

    @cached_property
    def site(self) -> Site:
        """The target and the condition's shapes.

        Of networks that differ in the number of classes alone, the first's target; None for several architectures. A
        size that varies is 0.
        """
        spec = self.members[0].spec
        others = {member.spec.hash: member.spec for member in self.members}
        same = all(h == spec.hash or but_for_classes(spec, shapes_of(other)) for h, other in others.items())
        shapes = shapes_asked(self.members[0])
        for member in self.members[1:]:
            for name, shape in shapes_asked(member).items():
                shapes[name] = tuple(a if a == b else 0 for a, b in zip(shapes[name], shape, strict=True))
        return Site(0, spec if same else None, shapes)

    @cached_property
    def digest(self) -> str:
        """Tells this zoo from others, and from itself after a change."""
        told = [[m.label, m.entry.model_dump(mode="json"), dict(m.identity)] for m in self.members]
        files = [m.condition.files for m in self.members[:1] if isinstance(m.condition, Conditions)]
        beside = [files[0].fingerprints] if files and files[0].fingerprints else []
        return hashlib.sha256(json.dumps([*told, *beside], sort_keys=True).encode()).hexdigest()

    def batch(self, members: Sequence[Member]) -> dict[str, Tensor]:
        """(B, *shape) by slot, fp32, of networks of one architecture; only what is not in memory is read.

        InvalidInput for networks of several architectures, for one that is not finite, and for one of the Hub that is
        not what the index states the hash of.
        """
        if not members:
            raise InvalidInput("a batch of no networks", "give one or more")
        made = self.reader.batch(members)
        for i, member in enumerate(members):
            if on_hub(member.entry.path) and member.entry.sha256 and member.label not in self._sound:
                if digest_of({name: tensor[i] for name, tensor in made.items()}) != member.entry.sha256:
                    fact = f"{printable(member.label)}: is not what the index says it is: its sha256 is another"
                    raise InvalidInput(fact, "name the commit that is meant, or leave it out of the zoo")
                self._sound.add(member.label)
        return made

    def batches(
        self, split: Split | None = "train", size: int | None = None
    ) -> Iterator[tuple[tuple[Member, ...], dict[str, Tensor]]]:
        """Networks of a split, or all, with their tensors: at most `size` of one architecture at once.

        In the order of the zoo, architecture by architecture.
        """
        for group in architectures(self.members if split is None else self.of(split)):
            several = size or max(1, _TOGETHER // max(1, group[0].numbers))
            for start in range(0, len(group), several):
                chosen = group[start : start + several]
                yield chosen, self.batch(chosen)

    def load(self, member: Member) -> dict[str, Tensor]:
        """The slots of a network in fp32. InvalidInput for one that is not finite."""
        return {name: tensor[0] for name, tensor in self.batch([member]).items()}


def architectures(members: Sequence[Member]) -> list[tuple[Member, ...]]:
    """Networks by architecture, in the order in which these come first."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.spec.hash, []).append(member)
    return [tuple(group) for group in groups.values()]


def shapes_asked(member: Member) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of its condition."""
    if isinstance(member.condition, Conditions):
        return dict(member.condition.shapes)
    return {name: tuple(tensor.shape) for name, tensor in member.condition.items()}


def _check_conditions(members: Sequence[Member]) -> None:
    """InvalidInput where networks do not say the same things; sizes may differ."""
    first = members[0]
    known = {name: len(shape) for name, shape in shapes_asked(first).items()}
    for member in members[1:]:
        if {name: len(shape) for name, shape in shapes_asked(member).items()} != known:
            fact = f"{printable(member.label)}: its condition is not of the shape of {printable(first.label)}'s"
            raise InvalidInput(fact, "say the same of every checkpoint")


def _check_apart(members: Sequence[Member]) -> None:
    """InvalidInput for a network that is listed on two sides of a split, by its file or by its stated content."""
    seen: dict[object, Member] = {}
    files: dict[Path, str] = {}
    for member in members:
        if member.path not in files:
            files[member.path] = os.path.realpath(member.path)  # one file may have several names
        for key in ((files[member.path], member.entry.row), member.entry.sha256):
            other = member if key is None else seen.setdefault(key, member)
            if other.entry.split != member.entry.split:
                told = f"{printable(other.label)} ({other.entry.split}) and {printable(member.label)}"
                fact = f"{told} ({member.entry.split}) are the same network"
                raise InvalidInput(fact, "what is trained on is not judged by: paramsmith zoo split")
