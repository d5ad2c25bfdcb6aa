"""Whether what a generator draws is in its zoo: as its codec sees networks, and by the mistakes that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hypernet.protocols import Classifying, Episode, Task
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.zoos.contents import DIGITS
from paramsmith.hypernet.zoos.zoo import Member, Zoo

from .finetune import logits
from .novelty import Novelty, ensemble_gain, error_overlap, novelty

Seen: TypeAlias = Callable[[Mapping[str, Tensor], TargetSpec], Tensor]  # weights (B, *shape) -> (B, ...)

_MOST = 2048  # networks of the zoo that are compared with, evenly taken


@dataclass(frozen=True)
class Copying:
    """How new samples are, and what they do.

    `overlap`: the mean of the largest overlap of a sample's mistakes with those of one network of the zoo on the same
    examples; `gain`: what the mean of the samples' logits has over one of them, in accuracy. None where the task gives
    no logits.
    """

    samples: int
    novelty: Novelty
    overlap: float | None = None
    gain: float | None = None

    @property
    def copies(self) -> float:
        """The share of samples that are copies."""
        return self.novelty.copies


@torch.no_grad()
def copying(
    zoo: Zoo,
    drawn: Sequence[tuple[Episode, Sequence[Mapping[str, Tensor]]]],
    seen: Seen | None = None,
    task: Task | None = None,
) -> Copying | None:
    """Samples for episodes, held against the networks of a zoo of the architecture that most of them are of.

    `seen` is what networks are compared as, such as a codec's latents: it must be that of samples and zoo alike, since
    a codec brings networks nearer to each other. Held-out networks are those that are not to train on. None where the
    zoo has fewer than two networks of that architecture.
    """
    groups: dict[str, list[tuple[Episode, Sequence[Mapping[str, Tensor]]]]] = {}
    for episode, samples in drawn:
        groups.setdefault(episode.target.spec.hash, []).append((episode, samples))
    own = max(groups.values(), key=lambda group: sum(len(samples) for _, samples in group))
    spec = own[0][0].target.spec
    known = [member for member in zoo.of("train") if member.spec.hash == spec.hash]
    if len(known) < 2:
        return None
    other = [m for m in zoo.members if m.spec.hash == spec.hash and m.entry.split != "train"]
    training, held_out = _evenly(zoo, known), _evenly(zoo, other) if other else None
    stacked = {s.name: torch.stack([w[s.name] for _, samples in own for w in samples]) for s in spec.slots}
    flat = seen or _flat
    found = novelty(
        flat(stacked, spec).flatten(1),
        flat(training, spec).flatten(1),
        None if held_out is None else flat(held_out, spec).flatten(1),
    )
    return Copying(len(stacked[spec.slots[0].name]), found, *_mistakes(task, own, training))


def check_unlearned(zoo: Zoo, hashes: Mapping[str, str | None], learned: Mapping[str, str | None]) -> None:
    """InvalidInput where a network that is judged by was trained on, by the zoo or by a generator, naming both.

    `hashes` are those of the networks by label, `learned` what generators keep of those they learned from, by name.
    """
    trained = {hashes[member.label]: member.label for member in zoo.of("train")}
    kept = {name: set((known or "").split()) for name, known in learned.items()}
    for member in zoo.members:
        digest = hashes[member.label]
        if member.entry.split == "train" or digest is None:
            continue
        held = printable(member.label)
        if digest in trained:
            fact = f"{held} is held out, and has the weights of {printable(trained[digest])}, which is trained on"
            raise InvalidInput(fact, "deal the zoo out again: paramsmith zoo split")
        for name, known in kept.items():
            if digest[:DIGITS] in known:
                fact = f"{held} is held out, and {printable(name)} learned from it"
                raise InvalidInput(
                    fact, "train on the zoo as it is dealt out now, or judge by networks it has not seen"
                )


def _evenly(zoo: Zoo, members: Sequence[Member]) -> dict[str, Tensor]:
    """(M, *shape) by slot, of at most so many."""
    step = -(-len(members) // _MOST)
    return zoo.batch(members[::step])


def _flat(weights: Mapping[str, Tensor], spec: TargetSpec) -> Tensor:
    return torch.cat([weights[slot.name].flatten(1) for slot in spec.slots], 1)


def _mistakes(
    task: Task | None,
    drawn: Sequence[tuple[Episode, Sequence[Mapping[str, Tensor]]]],
    training: Mapping[str, Tensor],
) -> tuple[float | None, float | None]:
    """Means over episodes of the overlap of mistakes, and of what an ensemble gains."""
    if not callable(getattr(task, "logits", None)):
        return None, None
    telling = cast(Classifying, task)
    overlaps, gains = [], []
    for episode, samples in drawn:
        y = episode.query.get("y")
        if y is None or y.is_floating_point() or not y.numel():
            return None, None  # answers that are not right or wrong
        stacked = {name: torch.stack([w[name] for w in samples]) for name in samples[0]}
        own, known = (logits(telling, episode.target, held, episode.query) for held in (stacked, training))
        if own.shape[1:-1] != y.shape:
            fact = f"the task's logits are {list(own.shape[1:])} for labels {list(y.shape)}"
            raise Failed(fact, "give (*labels, classes), a number a class")
        wrong = ((given.argmax(-1) != y).flatten(1) for given in (own, known))
        overlaps.append(float(error_overlap(*wrong).mean()))
        if len(samples) > 1:
            gains.append(ensemble_gain(own, y))
    return sum(overlaps) / len(overlaps), sum(gains) / len(gains) if gains else None
