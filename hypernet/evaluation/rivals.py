"""What a generator has to beat: generators computed from the zoo it was trained on, and the networks of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.protocols import Episode, Task
from paramsmith.hypernet.zoos.zoo import Member, Zoo

from .finetune import scores
from .generated import Generated
from .starts import Start, Weights

RIVALS = ("mean", "nearest", "noise_copy", "gaussian", "prototype", "ridge")
_MOST = 1024  # networks of a zoo that are tried
_TOGETHER = 64  # at once


@dataclass(frozen=True)
class Rival:
    """A start that comes with a zoo, and the seconds that it took to make."""

    name: str
    start: Start
    seconds: float


def rivals(zoo: Zoo, task: Task, seed: int = 0) -> tuple[list[Rival], dict[str, str]]:
    """Every preset of RIVALS that can be computed from the zoo, the best of its networks, and why others are left out.

    Another one is a name in RIVALS, of a preset that needs no steps of training; or a `Rival` of its own, added here.
    `gaussian` is of principal components where the target is more than its head.
    """
    found, left_out = [], {}
    for name in RIVALS:
        try:
            made = _built(name, zoo)
            made.fit(zoo)
        except InvalidInput as problem:
            left_out[name] = problem.fact
            continue
        found.append(Rival(name, Generated(made.model, seed), made.seconds or 0.0))
    found.append(Rival("best of the zoo", best_network(zoo, task), 0.0))
    return found, left_out


def best_network(zoo: Zoo, task: Task) -> Start:
    """Of the networks to train on, at most 1024 and evenly taken, the one that does best on the episode's support.

    InvalidInput for an architecture that none has.
    """

    @torch.no_grad()
    def start(episode: Episode, number: int) -> Weights:
        spec = episode.target.spec
        known = [member for member in zoo.of("train") if member.spec.hash == spec.hash]
        if not known:
            raise InvalidInput("no network of the zoo has the architecture asked for", "judge by those it has")
        known = known[:: -(-len(known) // _MOST)]
        found = [_scored(zoo, task, episode, known[i : i + _TOGETHER]) for i in range(0, len(known), _TOGETHER)]
        best = int(torch.cat(found).nan_to_num(nan=-torch.inf).argmax())
        return zoo.load(known[best])

    return start


def _scored(zoo: Zoo, task: Task, episode: Episode, members: list[Member]) -> Tensor:
    held: Mapping[str, Tensor] = zoo.batch(members)
    return scores(task, episode.target, held, episode.support)


def _built(name: str, zoo: Zoo) -> Generator:
    spec = zoo.site.spec
    if name == "gaussian" and spec is not None and any(slot.class_axis is None for slot in spec.slots):
        return Generator.build(name, zoo.site, codec="pca")
    return Generator.build(name, zoo.site)
