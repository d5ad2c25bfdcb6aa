"""Building a zoo: networks for n draws from a task, trained side by side and written as stacked files."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.device import one_thread_an_operation, pick_device
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hypernet.protocols import Batch, Episode, Site, Target, Task
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.statistics import with_statistics
from paramsmith.hypernet.training.tasks import drawn
from paramsmith.hypernet.writing.samples import sample_seed
from paramsmith.memory import as_bytes
from paramsmith.params import Params, validated
from paramsmith.parts import bases
from paramsmith.progress import Progress

from .index import Entry, Split
from .member import Member
from .smallness import few
from .statistics import statistics_of
from .training import Rows, judged, trained
from .writing import ZooWriter

_TOGETHER = 1 << 26  # numbers of weights that are trained at once
_DRAWN = 1024  # episodes in memory at once


class Building(Params):
    """How the networks of a zoo are trained."""

    init: Literal["shared", "independent"] = Field("shared", description="one initialisation, or one a network")
    steps: int = Field(400, ge=0, le=10_000_000, description="steps of Adam for each network")
    lr: float = Field(0.01, gt=0, allow_inf_nan=False, description="learning rate, which falls to 0 as half a cosine")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="rows of its own that each network sees a step")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of the episodes, the initialisations and the batches")
    test: int = Field(0, ge=0, le=1_000_000, description="more networks, for unseen conditions, to judge by")


@dataclass(frozen=True)
class Built:
    """What was built: the mean over networks of what they were judged by, and what should be known of it."""

    output: Path
    networks: int
    files: int
    metrics: Mapping[str, float]
    seconds: float
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told = {"networks": self.networks, "files": self.files, "metrics": dict(self.metrics)}
        return {"output": str(self.output), **told, "seconds": self.seconds, "warnings": list(self.warnings)}


@dataclass(frozen=True)
class _Draw:
    """One episode, its place in the zoo, and the seed it came from."""

    number: int
    seed: int
    split: Split
    episode: Episode


def build(
    task: Task,
    n: int,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    **building: object,
) -> Built:
    """Train a network for each of n episodes of a task, and write them, with what is known of each, to a folder.

    Each is trained on its episode's support and judged on its query; `building` has fields of `Building`. Networks of
    one target are trained side by side; what network i is drawn from and sees depends on `seed` and i, not on n.
    InvalidInput for a task without support, Failed for networks that leave the finite numbers, Refused for an output
    that exists; nothing is left of a zoo that was not finished. `device`: as `pick_device` takes it.
    """
    how = validated(Building, building, "the zoo", "see: paramsmith zoo build --help")
    if not 1 <= n <= 100_000_000:
        raise InvalidInput(f"a zoo of {n} networks", "give 1 or more")
    where = str(pick_device(device))
    began, total = time.perf_counter(), n + how.test
    sums: dict[str, float] = {}
    with ZooWriter(output, force=force) as writer, one_thread_an_operation(), seeded(how.seed):
        done = 0
        for first in range(0, total, _DRAWN):
            draws = [_draw(task, i, n, how.seed) for i in range(first, min(first + _DRAWN, total))]
            for group in _groups(draws):
                tell = _teller(progress, done, len(group), total, how.steps)
                entries, tensors = _trained(task, group, how, where, tell)
                conditions = [draw.episode.condition for draw in group]
                spec = group[0].episode.target.spec
                spec = spec if len(tensors) == len(spec.slots) else with_statistics(spec)
                writer.add(spec, tensors, entries, conditions, [draw.number for draw in group])
                done += len(group)
                for name, value in ((name, value) for entry in entries for name, value in entry.metrics.items()):
                    sums[name] = sums.get(name, 0.0) + value
        path, files = writer.publish(), writer.groups
    metrics = {name: value / total for name, value in sums.items()}
    said = few(n)
    return Built(path, total, files, metrics, time.perf_counter() - began, () if said is None else (said,))


def episode_of(task: Task, member: Member) -> Episode:
    """The episode that a network was trained for, drawn again. InvalidInput where the zoo does not say."""
    if member.entry.episode is None:
        raise InvalidInput(f"{printable(member.label)}: its episode is not known", "build the zoo from a task")
    return drawn(task, torch.Generator().manual_seed(member.entry.episode), member.entry.drawn)


def _draw(task: Task, number: int, n: int, seed: int) -> _Draw:
    split: Split = "train" if number < n else "test"
    own = sample_seed(seed, number)
    episode = drawn(task, torch.Generator().manual_seed(own), "zoo" if split == "train" else "test")
    if not episode.support:
        fact = f"episode {number} of the task has no support to train on"
        raise InvalidInput(fact, 'give it one where `split` is "zoo", and a query to be judged by')
    return _Draw(number, own, split, episode)


def _groups(draws: Sequence[_Draw]) -> list[list[_Draw]]:
    """Those of one target, as many as are trained at once; others of its shapes may compute something else."""
    known: dict[int, list[_Draw]] = {}
    for draw in draws:
        known.setdefault(id(draw.episode.target), []).append(draw)
    groups = []
    for group in known.values():
        numbers = sum(math.prod(slot.shape) for slot in group[0].episode.target.spec.slots)
        several = max(1, _TOGETHER // max(1, numbers))
        groups += [group[start : start + several] for start in range(0, len(group), several)]
    return groups


def _trained(
    task: Task, group: Sequence[_Draw], how: Building, device: str, tell: Callable[[int], None]
) -> tuple[list[Entry], dict[str, Tensor]]:
    """The networks of a group, with the statistics of their norms, and what is known of each."""
    target = group[0].episode.target
    seeds = [how.seed if how.init == "shared" else sample_seed(draw.seed, 1) for draw in group]
    weights = trained(
        task,
        target,
        {name: start.to(device) for name, start in _starts(target, seeds).items()},
        Rows([draw.episode.support for draw in group], [sample_seed(draw.seed, 2) for draw in group], device),
        steps=how.steps,
        lr=how.lr,
        batch_size=how.batch_size,
        tell=tell,
    )
    _check_finite(group, weights)
    queries = [draw.episode.query for draw in group]
    metrics = {
        name: judged(measure, name, target, weights, queries)
        for name, measure in (("score", task.score), ("loss", task.loss))
    }
    _check_judged(group, metrics)
    statistics = statistics_of(task, target, weights, [draw.episode.support for draw in group])
    known: dict[object, bytes] = {}
    entries = [
        Entry(
            path="?",
            task=draw.episode.task or _data_digest(draw.episode, known),
            run=f"{how.seed}-{draw.number}",
            step=how.steps,
            seed=seeds[i],
            metrics={name: values[i] for name, values in metrics.items()},
            split=draw.split,
            episode=draw.seed,
            drawn="zoo" if draw.split == "train" else "test",
        )
        for i, draw in enumerate(group)
    ]
    return entries, {**weights, **statistics}


def _starts(target: Target, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The architecture's own initialisation, (B, *shape) by slot; what is shared is made once."""
    part = bases.find("standard")
    base = part.make(validated(part.params, {}, "the base standard"), Site(0))
    shared = len(set(seeds)) == 1
    made = {slot.name: base([slot], seeds[:1] if shared else seeds)[:, 0].detach() for slot in target.spec.slots}
    return {name: start.expand(len(seeds), *start.shape[1:]) for name, start in made.items()}


def _check_finite(group: Sequence[_Draw], weights: Mapping[str, Tensor]) -> None:
    good = torch.stack([weight.flatten(1).isfinite().all(1) for weight in weights.values()]).all(0)  # (B,)
    if not bool(good.all()):
        draw = group[int((~good).nonzero()[0])]
        fact = f"network {draw.number} left the finite numbers, as did {int((~good).sum()) - 1} others"
        raise Failed(fact, "lower --lr")


def _check_judged(group: Sequence[_Draw], metrics: Mapping[str, Sequence[float]]) -> None:
    for name, values in metrics.items():
        wrong = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if wrong is not None:
            fact = f"the task's {name} of network {group[wrong].number} on its query is {values[wrong]}"
            raise Failed(fact, "look at what the task computes, and whether the query has rows")


def _data_digest(episode: Episode, known: dict[object, bytes]) -> str:
    """What tells the data of one task from another's: networks for the same data are for the same task.

    `known`: hashes of tensors that still are in memory.
    """
    digest = hashlib.sha256()
    parts: tuple[Batch, ...] = (episode.support, episode.query)
    for name, tensor in ((name, part[name]) for part in parts for name in sorted(part)):
        key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if key not in known:
            known[key] = hashlib.sha256(as_bytes(tensor.detach().cpu().contiguous())).digest()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + known[key])
    return digest.hexdigest()[:16]


def _teller(progress: Progress | None, before: int, networks: int, total: int, steps: int) -> Callable[[int], None]:
    """Tells steps of networks, all together."""

    def tell(step: int) -> None:
        if progress is not None:
            progress(before * steps + step * networks, total * steps)

    return tell
