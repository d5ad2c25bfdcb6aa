"""Dealing the networks of a zoo out to train on, to choose by and to judge by: by task, or by run."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from paramsmith.disk import replace_file
from paramsmith.errors import InvalidInput, printable

from .contents import copies, digests
from .index import INDEX, SPLITS, Split, index_bytes
from .member import Member
from .zoo import Zoo


def split(zoo: Zoo, shares: Mapping[Split, float], seed: int = 0) -> Zoo:
    """The same zoo, its tasks dealt out by these shares; what they leave is to train on.

    Networks of one task stay together; where there are fewer tasks than parts, those of one run do. A network that
    says neither is a task, or a run, of its own. A part with a share gets at least one. InvalidInput for shares that
    are none, for a zoo that cannot be dealt out, and for equal networks in different tasks or runs, naming both.
    """
    wanted = _checked(shares)
    units = _units(zoo, len(wanted))
    _check_copies(zoo, units)
    order = sorted(units)
    random.Random(seed).shuffle(order)  # the same in every version of Python
    chosen: dict[str, Split] = {}
    for part, count in _counts(wanted, len(order)).items():
        for unit in order[len(chosen) : len(chosen) + count]:
            chosen[unit] = part
    of_label = {member.label: chosen[unit] for unit, members in units.items() for member in members}
    members = [replace(m, entry=m.entry.model_copy(update={"split": of_label[m.label]})) for m in zoo.members]
    return Zoo(zoo.folder, members, zoo.reader.budget)


def save_index(zoo: Zoo) -> None:
    """Write `zoo.jsonl` anew, as a whole or not at all. Raises Failed."""
    replace_file(zoo.folder / INDEX, index_bytes(member.entry for member in zoo.members))


def _checked(shares: Mapping[Split, float]) -> dict[Split, float]:
    """Shares of all parts that get any, which sum to 1."""
    strange = next((name for name in shares if name not in SPLITS), None)
    if strange is not None:
        raise InvalidInput(f"{printable(strange)} is no part of a zoo", f"the parts are {', '.join(SPLITS)}")
    for name, share in shares.items():
        if not 0 <= share <= 1:  # NaN too
            raise InvalidInput(f"the share of {name} is {share}", "shares are from 0 to 1")
    rest = 1 - math.fsum(share for name, share in shares.items() if name != "train")
    said = shares.get("train", rest)
    if rest < -1e-9 or abs(rest - said) > 1e-6:
        raise InvalidInput("the shares do not sum to 1", "give those of validation and test; the rest is to train on")
    whole: dict[Split, float] = {**dict.fromkeys(SPLITS, 0.0), **shares, "train": max(0.0, rest)}
    return {name: whole[name] for name in SPLITS if whole[name] > 1e-9}


def _units(zoo: Zoo, parts: int) -> dict[str, list[Member]]:
    """The networks that stay together, by what they have in common."""
    for kind in ("task", "run"):
        units: dict[str, list[Member]] = {}
        for member in zoo.members:
            units.setdefault(_key(member, kind), []).append(member)
        if len(units) >= parts:
            return units
    told = f"one run of one task, {printable(zoo.members[0].label)}" if len(units) == 1 else f"{len(units)} runs"
    raise InvalidInput(f"the zoo has no more than {told}, and {parts} parts are asked for", "train more networks")


def _key(member: Member, kind: str) -> str:
    """Task, or task and run; runs are counted task by task."""
    task, run = member.entry.task, member.entry.run
    if kind == "task" and task is not None:
        return f"task {task!r}"
    if run is not None:
        return f"run {task!r} {run!r}"
    return f"network {member.label!r}"


def _check_copies(zoo: Zoo, units: Mapping[str, Sequence[Member]]) -> None:
    unit_of = {member.label: unit for unit, members in units.items() for member in members}
    for labels in copies(digests(zoo)):
        other = next((label for label in labels if unit_of[label] != unit_of[labels[0]]), None)
        if other is not None:
            fact = f"{printable(labels[0])} and {printable(other)} are the same network, in different tasks or runs"
            raise InvalidInput(fact, "leave one of them out")


def _counts(shares: Mapping[Split, float], units: int) -> dict[Split, int]:
    """How many units each part gets: one, and of the others its share, what is left going to the largest rests."""
    counts: dict[Split, int] = {part: max(1, int(share * units)) for part, share in shares.items()}

    def excess(part: Split) -> float:
        return counts[part] - shares[part] * units

    while sum(counts.values()) < units:
        counts[min(counts, key=excess)] += 1
    while sum(counts.values()) > units:
        several: list[Split] = [part for part in counts if counts[part] > 1]
        counts[max(several, key=excess)] -= 1
    return counts
