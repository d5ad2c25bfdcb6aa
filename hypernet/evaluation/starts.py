"""Where training can begin: fresh inits, the mean of trained networks, the nearest of trained architectures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Episode, Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import validated
from paramsmith.parts import bases

Weights: TypeAlias = Mapping[str, Tensor]
Start: TypeAlias = Callable[[Episode, int], Weights]  # (an episode, number of the draw) -> weights by slot


@dataclass(frozen=True)
class Trained:
    """A network that was trained: what it is, and its weights by slot."""

    spec: TargetSpec
    weights: Weights


def fresh(kind: str = "default") -> Start:
    """The architecture's own initialisation, or `orthogonal` and the other kinds of the base `standard`."""
    part = bases.find("standard")
    base = part.make(validated(part.params, {"kind": kind}, "the base standard"), Site(0))

    def start(episode: Episode, seed: int) -> Weights:
        return {s.name: base([s], [seed])[0, 0].detach() for s in episode.target.spec.slots}

    return start


def mean_of(zoo: Sequence[Trained]) -> Start:
    """The mean, tensor by tensor, of the trained networks of the same architecture; InvalidInput if there are none."""

    def start(episode: Episode, seed: int) -> Weights:
        same = [trained.weights for trained in zoo if trained.spec.hash == episode.target.spec.hash]
        if not same:
            raise InvalidInput("no trained network has the architecture asked for", "leave the start `mean` out")
        return {name: torch.stack([w[name] for w in same]).mean(0) for name in same[0]}

    return start


def nearest(zoo: Sequence[Trained]) -> Start:
    """The weights of the trained network of the nearest architecture, each tensor cut or tiled to the shape wanted."""

    def start(episode: Episode, seed: int) -> Weights:
        spec = episode.target.spec
        closest = min(range(len(zoo)), key=lambda i: (distance(zoo[i].spec, spec), (i - seed) % len(zoo)))
        return transplanted(zoo[closest], spec)

    return start


def distance(a: TargetSpec, b: TargetSpec) -> float:
    """How unlike two architectures are: the mean of |log2| of the ratios of their sizes, slot by slot, and of depth.

    Slots are paired by role and by place in the depth. 0 for equal shapes.
    """
    gaps = [abs(math.log2(len(a.slots) / len(b.slots)))]
    for slot in b.slots:
        other = _counterpart(slot, a, b)
        if other is None or len(other.shape) != len(slot.shape):
            gaps.append(8.0)  # as far as a size 256 times another
        else:
            gaps += [abs(math.log2(max(x, 1) / max(y, 1))) for x, y in zip(other.shape, slot.shape, strict=True)]
    return sum(gaps) / len(gaps)


def transplanted(source: Trained, spec: TargetSpec) -> dict[str, Tensor]:
    """Weights for `spec` from another architecture's: paired as in `distance`, cut or repeated along every axis.

    A tensor without counterpart is zero, or one where it is a norm's scale.
    """
    made: dict[str, Tensor] = {}
    for slot in spec.slots:
        other = _counterpart(slot, source.spec, spec)
        if other is None or len(other.shape) != len(slot.shape):
            made[slot.name] = torch.full(slot.shape, 1.0 if slot.role == "norm_scale" else 0.0)
            continue
        values = source.weights[other.name]
        for axis, wanted in enumerate(slot.shape):
            values = values.index_select(axis, torch.arange(wanted) % max(1, values.shape[axis]))
        made[slot.name] = values.clone()
    return made


def _counterpart(slot: Slot, source: TargetSpec, target: TargetSpec) -> Slot | None:
    """The slot of the source with the same role and about the same place among those of that role."""
    wanted = [s.name for s in target.slots if _kind(s) == _kind(slot)]
    there = [s for s in source.slots if _kind(s) == _kind(slot)]
    if not there:
        return None
    place = wanted.index(slot.name) / max(1, len(wanted) - 1)
    return there[round(place * (len(there) - 1))]


def _kind(slot: Slot) -> tuple[object, ...]:
    return slot.role, len(slot.shape), slot.class_axis


def diversity(weights: Sequence[Weights], spec: TargetSpec) -> float | None:
    """Mean of 1 - |cos| over pairs of tensors of equal shape, two axes or more, within and between networks.

    0: all alike up to a factor; about 1: unrelated. None where no two shapes are equal.
    """
    total, count = 0.0, 0
    for group in spec.groups:
        slots = [spec.slots[i] for i in group]
        if len(slots[0].shape) < 2:
            continue
        flat = torch.stack([w[slot.name].flatten() for w in weights for slot in slots]).double()
        unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
        pairs = torch.triu(torch.ones(len(unit), len(unit), dtype=torch.bool), 1)
        total += float((1 - (unit @ unit.T).abs())[pairs].sum())
        count += int(pairs.sum())
    return max(0.0, total / count) if count else None  # copies may come out a rounding below
