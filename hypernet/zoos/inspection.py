"""What a zoo holds, and what should be known of it before a generator learns from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from paramsmith.errors import InvalidInput

from .align import SHARED, shared_order
from .contents import copies, digests
from .index import INDEX, SPLITS, pickles_in
from .member import Member
from .smallness import few, run_count
from .zoo import Zoo, architectures, shapes_asked

_TOGETHER = 64  # networks read at once


@dataclass(frozen=True)
class Architecture:
    """Networks of one architecture.

    `explained`: the share of the mean square of all matrices and kernels but the head that is their mean's; about
    1 / networks where these have nothing in common, None where there are no such tensors.
    """

    hash: str
    networks: int
    numbers: int
    tensors: int
    classes: int | None
    explained: float | None


@dataclass(frozen=True)
class Inspection:
    """A zoo in numbers. `metrics` are least, mean and largest; `copies` are labels of networks with equal weights.

    `order`: how far the networks to train on share one order of hidden units, from 0 by chance to 1 (`Aligned.stay`);
    None where what may be permuted is not known.
    """

    networks: int
    architectures: tuple[Architecture, ...]
    order: float | None
    tasks: int
    runs: int
    splits: Mapping[str, int]
    condition: Mapping[str, tuple[int, ...]]
    metrics: Mapping[str, tuple[float, float, float]]
    copies: tuple[tuple[str, ...], ...]
    crossing: tuple[tuple[str, str], ...]
    not_finite: tuple[str, ...]
    changed: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


def inspect(zoo: Zoo) -> Inspection:
    """Read a whole zoo, a batch at a time.

    `crossing`: copies, or networks of one task and run, on different sides of a split. `changed`: networks whose
    weights are not those that the index states the hash of.
    """
    found = digests(zoo)
    bad = tuple(label for label, digest in found.items() if digest is None)
    same = tuple(copies(found))
    kinds = tuple(_architecture(zoo, [m for m in group if m.label not in bad]) for group in architectures(zoo.members))
    stated = {m.label: m.entry.sha256 for m in zoo.members if m.entry.sha256 is not None}
    changed = tuple(label for label, digest in stated.items() if found[label] not in (None, digest))
    crossing = _crossing(zoo, same)
    order = None if bad else _order(zoo)
    return Inspection(
        networks=len(zoo),
        architectures=kinds,
        order=order,
        tasks=len({m.entry.task for m in zoo.members if m.entry.task is not None}),
        runs=run_count(zoo.members),
        splits={split: len(zoo.of(split)) for split in SPLITS},
        condition=zoo.site.condition,
        metrics=_metrics(zoo.members),
        copies=same,
        crossing=crossing,
        not_finite=bad,
        changed=changed,
        warnings=tuple(_warnings(zoo, order, same, crossing, bad, changed)),
    )


@torch.no_grad()
def _architecture(zoo: Zoo, members: Sequence[Member]) -> Architecture:
    """What they have in common: |sum|^2 / (n sum of squares)."""
    spec, count = (members or zoo.members)[0].spec, len(members)
    body = [slot.name for slot in spec.slots if slot.role in ("matrix", "kernel")]
    sums = {slot.name: torch.zeros(slot.shape, dtype=torch.float64) for slot in spec.slots if slot.name in body}
    squares = 0.0
    for start in range(0, count, _TOGETHER):
        held = zoo.reader.batch(members[start : start + _TOGETHER])
        for name, total in sums.items():
            total += held[name].sum(0, dtype=torch.float64)
            squares += float(held[name].double().square().sum())
    together = sum(float(total.square().sum()) for total in sums.values())
    return Architecture(
        spec.hash,
        count,
        sum(torch.Size(slot.shape).numel() for slot in spec.slots),
        len(spec.slots),
        spec.classes,
        together / (count * squares) if squares > 0 else None,
    )


def _order(zoo: Zoo) -> float | None:
    if len(zoo.of("train")) < 2:
        return None
    try:
        return shared_order(zoo)
    except InvalidInput:  # networks whose permutations nothing tells
        return None


def _metrics(members: Sequence[Member]) -> dict[str, tuple[float, float, float]]:
    values: dict[str, list[float]] = {}
    for member in members:
        for name, value in member.entry.metrics.items():
            values.setdefault(name, []).append(value)
    return {name: (min(held), sum(held) / len(held), max(held)) for name, held in values.items()}


def _crossing(zoo: Zoo, same: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Pairs that a split should not part, one for each such set."""
    by_label = {member.label: member for member in zoo.members}
    sets: list[list[Member]] = [[by_label[label] for label in labels] for labels in same]
    together: dict[object, list[Member]] = {}
    for member in zoo.members:
        if member.entry.run is not None:
            together.setdefault((member.entry.task, member.entry.run), []).append(member)
    found = []
    for group in [*sets, *together.values()]:
        other = next((m for m in group if m.entry.split != group[0].entry.split), None)
        if other is not None:
            found.append((group[0].label, other.label))
    return tuple(dict.fromkeys(found))


def _warnings(
    zoo: Zoo,
    order: float | None,
    same: Sequence[Sequence[str]],
    crossing: Sequence[tuple[str, str]],
    bad: Sequence[str],
    changed: Sequence[str],
) -> list[str]:
    runs = run_count(zoo.of("train"))
    said = [few(runs)] if runs else ["no network is to train on"]
    if zoo.site.spec is None:
        said.append("the networks are of several architectures: a sampler learns one")
    if order is not None and order < SHARED:
        said.append("the networks are not in one order of units, as each began elsewhere: paramsmith zoo align")
    labels = [member.label for member in zoo.members]
    pickled = [] if (zoo.folder / INDEX).exists() else pickles_in(zoo.folder)
    lists = (
        [f"{label} is listed more than once" for label, count in Counter(labels).items() if count > 1],
        [f"{name} is left out: it is a pickle, or has nothing else" for name in pickled],
        _widths(zoo),
        [f"{labels[0]} and {labels[1]} have the same weights" for labels in same],
        [f"{a} and {b} belong together, and are on two sides of a split" for a, b in crossing],
        [f"{label} holds values that are not finite" for label in bad],
        [f"{label} is not what the index says it is" for label in changed],
    )
    for told in lists:
        said += told[:1] + ([f"and {len(told) - 1} more like it"] if len(told) > 1 else [])
    return [text for text in said if text is not None]


def _widths(zoo: Zoo) -> list[str]:
    """What is asked for in another number of numbers than of the first network: features, which no encoder bears."""
    first, found = zoo.members[0], []
    own = shapes_asked(first)
    for name in (name for name, shape in zoo.site.condition.items() if shape and not shape[-1]):
        other = next((m for m in zoo.members if shapes_asked(m)[name][-1] != own[name][-1]), None)
        if other is not None:
            told = f"{own[name][-1]} numbers in {first.label} and {shapes_asked(other)[name][-1]} in {other.label}"
            found.append(f"the condition {name} has {told}")
    return found
