"""Bringing the networks of a zoo into one order of hidden units, so that their mean is near each of them.

Networks that began with one initialisation are in one order already. Others are matched to the first network, then,
round after round, each to the mean of all others as they were placed the round before:

    p_i = argmax over permutations of  <mean of p_j w_j over j != i,  p w_i>

Checkpoints of one run share a permutation, which is found for their mean. Networks that are not trained on are matched
to the mean of those that are. Ainsworth, Hayase, Srinivasa, Git Re-Basin, arXiv:2209.04836.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

from paramsmith.errors import GenerateWarning, InvalidInput
from paramsmith.inputs import place
from paramsmith.matching import PermutationSpec, apply_permutation, match_all

from .member import Member, shapes_of
from .permutable import permutable, unseen_skips
from .writing import ZooWriter
from .zoo import Zoo, architectures

REFERENCE = "reference.safetensors"  # the mean of the aligned networks to train on
RECORD = "alignment.json"
SHARED = 0.3  # share of units that find themselves at their place, above which networks are in one order
_TOGETHER = 1 << 24  # numbers matched at once
_PAIRS = 8  # that a barrier is measured between

Loss = Callable[[Mapping[str, Tensor]], float]  # of one network, by slot
_Run: TypeAlias = tuple[Member, ...]
_Placed: TypeAlias = dict[str, dict[str, Tensor]]  # by label, by name: (n,)


@dataclass(frozen=True)
class Aligned:
    """What was done to a zoo.

    `stay`: the share of units that match themselves in the mean of the other networks, 0 being chance; where it is
    above `SHARED`, the networks share their order, and are left as they are. `before`, `after`: the squared distance
    of runs to their mean, as a share of their squared length. `barrier`: the loss halfway between two runs less the
    mean of their own, before and after, where a loss was given.
    """

    output: Path
    networks: int
    shared: bool
    stay: float
    rounds: int
    before: float
    after: float
    barrier: tuple[float, float] | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told = {name: value for name, value in vars(self).items() if name not in ("output", "barrier")}
        barrier = None if self.barrier is None else {"before": self.barrier[0], "after": self.barrier[1]}
        return {"output": str(self.output), **told, "barrier": barrier}


def align(
    zoo: Zoo,
    output: str | os.PathLike[str],
    *,
    rounds: int = 3,
    seed: int = 0,
    spec: PermutationSpec | None = None,
    loss: Loss | None = None,
    force: bool = False,
) -> Aligned:
    """Write the same zoo with its networks in one order of units; `reference.safetensors` is their mean.

    Functions stay as they are. `spec` says which axes move together, where names and shapes do not tell; running
    statistics move with their units, and other buffers are not written. A `GenerateWarning` where a connection that
    skips a layer would not be seen. InvalidInput for networks of several architectures (those may differ in the number
    of classes), for one whose permutations are not known, and where there is nothing to train on; Refused for an output
    that exists.
    """
    if not 1 <= rounds <= 1000:
        raise InvalidInput(f"{rounds} rounds of alignment", "give 1 or more, such as 3")
    train = zoo.of("train")
    if not train:
        raise InvalidInput(f"{place(zoo.folder)}: has no networks to train on", '"split": "train"')
    held = _Runs(zoo, permutable(zoo, spec), train, seed)
    stay, before = held.stay(), held.unexplained()
    shared = stay > SHARED
    skips = unseen_skips(zoo.members[0].spec) if spec is None and not shared else None
    if skips is not None:
        warnings.warn(GenerateWarning(skips), stacklevel=2)
    first = None if loss is None else held.barrier(loss)
    with ZooWriter(output, force=force) as writer:
        if not shared:
            for number in range(rounds):
                held.match(to_first=number == 0)
        reference = {name: (total / held.count).float() for name, total in held.total.items()}
        placed = None if shared else held.by_label()
        if placed is not None:
            others = [member for member in zoo.members if member.entry.split != "train"]
            placed.update(_Runs(zoo, held.spec, others, seed).matched_to(reference))
        _write(zoo, held.spec, placed, writer)
        second = None if loss is None else held.barrier(loss)
        barrier = None if first is None or second is None else (first, second)
        done = 0 if shared else rounds
        made = Aligned(Path(output), len(zoo), shared, stay, done, before, held.unexplained(), barrier)
        writer.beside(REFERENCE, save({name: tensor.contiguous() for name, tensor in reference.items()}))
        writer.beside(RECORD, _record(made, held.spec, zoo, seed))
        writer.publish()
    return made


def shared_order(zoo: Zoo, seed: int = 0) -> float:
    """`Aligned.stay` of the networks to train on: above `SHARED` they share an order. InvalidInput as for `align`."""
    return _Runs(zoo, permutable(zoo), zoo.of("train"), seed).stay()


class _Runs:
    """Runs of a zoo, chunk by chunk, each with its permutations so far; `total` is the sum of them all, placed."""

    def __init__(self, zoo: Zoo, spec: PermutationSpec, members: Sequence[Member], seed: int) -> None:
        self.zoo, self.spec, self.seed = zoo, spec, seed
        sizes = spec.sizes(shapes_of(members[0].spec)) if members else {}
        self.chunks = list(_chunks(members, max((size**2 for size in sizes.values()), default=1)))
        self.count = sum(map(len, self.chunks))
        self.names = [name for name, axes in spec.axes.items() if any(axes) and name not in spec.carried]
        self.found = [{name: torch.arange(n).repeat(len(c), 1) for name, n in sizes.items()} for c in self.chunks]
        self.total, self.squares = self._summed()

    def match(self, *, to_first: bool) -> None:
        """Place each run anew: where it is nearest to the first run, or to the mean of all others."""
        first = {name: tensor[:1] for name, tensor in self._own(self.chunks[0]).items()} if to_first else None
        self.found = [self._nearest(number, first) for number in range(len(self.chunks))]
        self.total, _ = self._summed()

    def stay(self) -> float:
        """The share of units whose best place in the mean of the others is their own; 0 is that of chance."""
        if self.count < 2:
            return 1.0
        stay = total = 0
        for number in range(len(self.chunks)):
            for permutation in self._nearest(number, None).values():  # (runs, n)
                stay += int((permutation == torch.arange(permutation.shape[1])).sum()) - len(permutation)
                total += permutation.numel() - len(permutation)  # by chance one of n stays
        return stay / total if total else 1.0

    def unexplained(self) -> float:
        """1 - |mean|^2 / mean of |w|^2."""
        mean = sum(float(total.square().sum()) for total in self.total.values()) / self.count
        return 1 - mean / self.squares if self.squares else 0.0

    def matched_to(self, reference: Mapping[str, Tensor]) -> _Placed:
        """The permutations, by label, that place each run nearest to a reference."""
        wide = {name: tensor[None] for name, tensor in reference.items()}
        self.found = [self._nearest(number, wide) for number in range(len(self.chunks))]
        return self.by_label()

    def by_label(self) -> _Placed:
        """The permutations of each network, (n,)."""
        return {
            member.label: {name: permutation[row] for name, permutation in found.items()}
            for chunk, found in zip(self.chunks, self.found, strict=True)
            for row, run in enumerate(chunk)
            for member in run
        }

    def barrier(self, loss: Loss) -> float:
        """The mean over pairs of runs, one after the other, of the loss between two less the mean of theirs."""
        found = []
        held = self._placed(0, whole=True)
        runs = [{name: tensor[row] for name, tensor in held.items()} for row in range(len(self.chunks[0]))]
        for a, b in zip(runs[: 2 * _PAIRS : 2], runs[1 : 2 * _PAIRS : 2], strict=False):
            middle = {name: (a[name] + b[name]) / 2 for name in a}
            found.append(loss(middle) - (loss(a) + loss(b)) / 2)
        return sum(found) / len(found) if found else 0.0

    def _nearest(self, number: int, reference: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Permutations (runs, n) of a chunk; without a reference, each run's is the mean of the others as placed.

        A run's own share of the mean would hold it where it is.
        """
        if reference is None:
            placed = self._placed(number)
            reference = {name: (self.total[name] - placed[name]) / (self.count - 1) for name in self.names}
        return match_all(self.spec, reference, self._own(self.chunks[number]), seed=self.seed)

    def _placed(self, number: int, *, whole: bool = False) -> dict[str, Tensor]:
        return apply_permutation(self.spec, self.found[number], self._own(self.chunks[number], whole=whole))

    def _own(self, chunk: Sequence[_Run], *, whole: bool = False) -> dict[str, Tensor]:
        """The mean of each run's checkpoints, (runs, *shape): of the tensors that are compared, or of all."""
        read = self.zoo.batch([member for run in chunk for member in run])
        names = list(read) if whole else self.names
        if all(len(run) == 1 for run in chunk):
            return {name: read[name] for name in names}
        lengths = torch.tensor([len(run) for run in chunk])
        owner = torch.repeat_interleave(torch.arange(len(chunk)), lengths)
        made = {}
        for name in names:
            sums = torch.zeros(len(chunk), *read[name].shape[1:], dtype=torch.float64)
            sums.index_add_(0, owner, read[name].double())
            made[name] = (sums / lengths.view(-1, *[1] * (sums.ndim - 1))).float()
        return made

    def _summed(self) -> tuple[dict[str, Tensor], float]:
        """The sum of all runs as placed, fp64, and that of their squares."""
        total: dict[str, Tensor] = {}
        squares = 0.0
        for number in range(len(self.chunks)):
            for name, tensor in self._placed(number).items():
                squares += float(tensor.double().square().sum())
                part = tensor.sum(0, dtype=torch.float64)
                total[name] = total[name] + part if name in total else part
        return total, squares


def _chunks(members: Sequence[Member], pairs: int) -> Iterator[list[_Run]]:
    """Runs of one architecture, as many as are matched at once, in the order of the zoo; of `pairs` of units each."""
    for group in architectures(members):
        runs: dict[object, list[Member]] = {}
        for member in group:
            entry = member.entry
            runs.setdefault(member.label if entry.run is None else (entry.task, entry.run), []).append(member)
        several = max(1, _TOGETHER // max(1, pairs, group[0].numbers))
        whole = [tuple(run) for run in runs.values()]
        for start in range(0, len(whole), several):
            yield whole[start : start + several]


def _write(zoo: Zoo, spec: PermutationSpec, placed: _Placed | None, writer: ZooWriter) -> None:
    """All networks as they were placed, or as they are, with what is known of each."""
    numbers = {member.label: number for number, member in enumerate(zoo.members)}
    for members, tensors in zoo.batches(None):
        moved = tensors
        if placed is not None:
            found = [placed[member.label] for member in members]
            stacked = {name: torch.stack([one[name] for one in found]) for name in found[0]}
            moved = apply_permutation(spec, stacked, tensors)
        entries, conditions = [m.entry for m in members], [m.condition for m in members]
        writer.add(members[0].spec, moved, entries, conditions, [numbers[m.label] for m in members])


def _record(made: Aligned, spec: PermutationSpec, zoo: Zoo, seed: int) -> bytes:
    """`alignment.json`: the figures, the axes, and the networks that the reference is the mean of."""
    told = {name: value for name, value in made.to_json().items() if name != "output"}
    fitted = {member.label: member.entry.sha256 for member in zoo.of("train")}
    axes = {name: list(held) for name, held in spec.axes.items()}
    whole = {**told, "seed": seed, "axes": axes, "carried": sorted(spec.carried), "mean_of": fitted}
    return (json.dumps(whole, indent=1) + "\n").encode()
