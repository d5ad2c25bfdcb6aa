"""Is a generated start worth having? Beside fresh inits, trained networks, and what is computed from them.

Every start is trained on with every learning rate, its own best chosen on validation rows that no table shows; scores
are those of unseen data. What a generator, or the trained networks, cost to make is told with it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Episode, Task
from paramsmith.hypernet.seeding import rng_of, seeded
from paramsmith.hypernet.training.tasks import drawn
from paramsmith.hypernet.zoos.build import episode_of
from paramsmith.hypernet.zoos.contents import digests
from paramsmith.hypernet.zoos.zoo import Zoo

from .copying import Copying, Seen, check_unlearned, copying
from .finetune import Curves, EpisodeData, Schedule, finetune, finetune_together, row_count, split
from .results import Budget, Evaluation, Row
from .rivals import rivals
from .starts import Start, Trained, Weights, diversity, fresh, mean_of, nearest

Tell = Callable[[str], None]

_TOGETHER = 1 << 24  # numbers of data and weights that are trained on side by side


@dataclass(frozen=True)
class Arm:
    """A start to be judged, under a name of its own; `seconds` is what it cost to make, None where nobody knows.

    `of`: the name of the arm that this one is a control of; a control is no candidate. `seen`: as what this generator's
    samples are compared with networks of a zoo, such as latents of its codec; unless told, their numbers.
    `learned_from`: `Generator.learned_from`, by which it is refused where it is to be judged by what it learned from.
    """

    name: str
    start: Start
    seconds: float | None = 0.0
    generated: bool = False
    of: str | None = None
    seen: Seen | None = None
    learned_from: str | None = None


@dataclass(frozen=True)
class _Run:
    """What came of one arm: curves, each (rates, marks), by episode and seed; the weights that were begun with.

    `drawing`: seconds for the weights of one target.
    """

    arm: Arm
    curves: list[Curves]
    starts: list[list[Weights]]
    drawing: float


def evaluate(
    task: Task,
    arms: Sequence[Arm],
    budget: Budget | None = None,
    tell: Tell | None = None,
    zoo: Zoo | None = None,
) -> Evaluation:
    """Train on from every arm and from the starts without a generator, on the same test episodes.

    The starts: `random`, `orthogonal`, and, of networks trained on episodes of training, `mean` (where all episodes
    share an architecture) and `nearest`. With a zoo, what is computed from it takes the place of these two
    (`rivals.rivals`), and what arms draw is held against its networks (`copying.copying`); the episodes are those of
    its test networks, or, where it has none, the task's own. `tell` gets the name of each arm as its turn comes. What
    a task or a module draws from torch's own generator is the same every time.

    Raises InvalidInput for a task whose test episodes lack data to train on, or whose target an arm cannot make, for a
    zoo that trains on what is judged by, and Failed for a task whose code raises.
    """
    budget = budget or Budget()
    with one_thread_an_operation(), seeded(budget.seed):  # even side by side, targets are too small for threads
        if zoo is not None:
            check_unlearned(zoo, digests(zoo), {arm.name: arm.learned_from for arm in arms})
        episodes = _unseen(task, budget, zoo)
        return _evaluated(task, episodes, arms, budget, tell, zoo)


def _evaluated(
    task: Task, episodes: Sequence[Episode], arms: Sequence[Arm], budget: Budget, tell: Tell | None, zoo: Zoo | None
) -> Evaluation:
    data = [_data(episode, budget.seed) for episode in episodes]
    for arm in arms:  # one that does not fit is told of before anything is trained
        try:
            arm.start(episodes[0], 0)
        except InvalidInput as problem:
            raise InvalidInput(f"{printable(arm.name)}: {problem.fact}", problem.hint) from None
    everyone = [Arm("random", fresh()), Arm("orthogonal", fresh("orthogonal"))]
    left_out = None
    if zoo is None:
        everyone += _trained_starts(task, episodes, budget)
    else:
        known, left_out = rivals(zoo, task, budget.seed)
        everyone += [Arm(rival.name, rival.start, rival.seconds) for rival in known]
    found: list[_Run] = []
    for arm in (*everyone, *arms):
        if tell is not None:
            tell(arm.name)
        found.append(_runs(task, arm, episodes, data, budget))
    threshold = budget.threshold
    if threshold is None:
        threshold = _chosen(found[0].curves, budget)[1][:, -1].mean().item()
    rows = tuple(_row(run, episodes, budget, threshold) for run in found)
    return Evaluation(rows, budget, threshold, _copied(task, episodes, found, zoo), _counted(zoo, episodes), left_out)


def _unseen(task: Task, budget: Budget, zoo: Zoo | None) -> list[Episode]:
    """What is judged by. InvalidInput for a task that the zoo has to train on."""
    held = [] if zoo is None else [member for member in zoo.of("test") if member.entry.episode is not None]
    of_task = {member.entry.task or member.label: member for member in reversed(held)}  # the first of each
    chosen = sorted(of_task.values(), key=held.index)[: budget.targets]
    if chosen:
        return [episode_of(task, member) for member in chosen]
    episodes = [drawn(task, rng_of(budget.seed, 0, i), "test") for i in range(budget.targets)]
    seen = set() if zoo is None else {member.entry.task for member in zoo.of("train")}
    wrong = next((episode.task for episode in episodes if episode.task and episode.task in seen), None)
    if wrong is not None:
        fact = f"the task {printable(wrong)!r} is judged by, and the zoo has networks of it to train on"
        raise InvalidInput(fact, "hold tasks out: paramsmith zoo split --test 0.2, or draw others where split is test")
    return episodes


def _copied(task: Task, episodes: Sequence[Episode], found: Sequence[_Run], zoo: Zoo | None) -> dict[str, Copying]:
    """Of each generator, how its samples stand among the networks of the zoo."""
    made: dict[str, Copying] = {}
    for run in found:
        if zoo is not None and run.arm.generated and run.arm.of is None:
            copied = copying(zoo, list(zip(episodes, run.starts, strict=True)), run.arm.seen, task)
            if copied is not None:
                made[run.arm.name] = copied
    return made


def _counted(zoo: Zoo | None, episodes: Sequence[Episode]) -> dict[str, int] | None:
    if zoo is None:
        return None
    known = zoo.of("train")
    tasks = len({member.entry.task for member in known if member.entry.task is not None})
    return {"networks": len(known), "tasks": tasks, "held out": len(zoo) - len(known), "judged by": len(episodes)}


def _data(episode: Episode, seed: int) -> EpisodeData:
    if not episode.support:
        raise InvalidInput("a test episode has no support to train on", "give the task's test episodes one")
    if not row_count(episode.query):
        raise InvalidInput("the query of a test episode has no rows", "give the task's test episodes some to judge by")
    train, validation = split(episode.support, 0.2, seed)
    return EpisodeData(train, validation, episode.query)


def _trained_starts(task: Task, episodes: Sequence[Episode], budget: Budget) -> list[Arm]:
    if budget.networks == 0:
        return []
    began, zoo = time.perf_counter(), []
    for i in range(budget.networks):
        episode = drawn(task, rng_of(budget.seed, 2, i), "zoo")
        zoo.append(_trained(task, episode, budget, i))
    seconds = time.perf_counter() - began
    arms = [Arm("nearest", nearest(zoo), seconds)]
    known = {trained.spec.hash for trained in zoo}
    if all(episode.target.spec.hash in known for episode in episodes):
        arms.insert(0, Arm("mean", mean_of(zoo), seconds))
    return arms


def _trained(task: Task, episode: Episode, budget: Budget, seed: int) -> Trained:
    """A network trained for the whole budget at every learning rate, and the one of them that validates best."""
    data, start = _data(episode, budget.seed), fresh()(episode, seed)
    rates = torch.tensor(budget.rates)
    stacked = {name: w.expand(len(rates), *w.shape) for name, w in start.items()}
    schedule = Schedule((max(budget.marks),), budget.batch_size, seed)
    ended = finetune(task, episode.target, stacked, rates, data, schedule)
    best = int(ended.validation[:, -1].nan_to_num(nan=-math.inf).argmax())
    return Trained(episode.target.spec, {name: w[best] for name, w in ended.weights.items()})


def _runs(task: Task, arm: Arm, episodes: Sequence[Episode], data: Sequence[EpisodeData], budget: Budget) -> _Run:
    """Train on from every draw, for every episode, at every rate; side by side where episodes share a target."""
    rates, began = torch.tensor(budget.rates), time.perf_counter()
    starts = [[arm.start(episode, seed) for seed in range(budget.seeds)] for episode in episodes]
    drawing = (time.perf_counter() - began) / (len(episodes) * budget.seeds)
    curves: dict[tuple[int, int], Curves] = {}
    for group in _alike(episodes, data, budget):
        stacked = [
            {name: w.detach().expand(len(rates), *w.shape) for name, w in starts[i][seed].items()} for i, seed in group
        ]
        schedules = [Schedule(budget.judged, budget.batch_size, budget.seed + seed) for _, seed in group]
        target, held = episodes[group[0][0]].target, [data[i] for i, _ in group]
        curves |= zip(group, finetune_together(task, target, stacked, rates, held, schedules), strict=True)
    return _Run(arm, [curves[key] for key in sorted(curves)], starts, drawing)


def _alike(episodes: Sequence[Episode], data: Sequence[EpisodeData], budget: Budget) -> Iterator[list[tuple[int, int]]]:
    """Runs, as (episode, seed), that can be trained on side by side: of one target, with data of the same shapes."""
    groups: dict[object, list[tuple[int, int]]] = {}
    shared = Counter(id(episode.target) for episode in episodes)
    for i, (episode, held) in enumerate(zip(episodes, data, strict=True)):
        for seed in range(budget.seeds):
            shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(held.train.items()))
            alone = shared[id(episode.target)] == 1
            key = (i, seed) if alone else (id(episode.target), shapes)
            groups.setdefault(key, []).append((i, seed))
    for group in groups.values():
        train, spec = data[group[0][0]].train, episodes[group[0][0]].target.spec
        numbers = sum(t.numel() for t in train.values()) + sum(math.prod(slot.shape) for slot in spec.slots)
        several = max(1, _TOGETHER // max(1, numbers * len(budget.rates)))
        yield from (group[start : start + several] for start in range(0, len(group), several))


def _chosen(curves: Sequence[Curves], budget: Budget) -> tuple[int, Tensor, Tensor]:
    """The rate of the largest mean validation score after step 0; with it (runs, marks) to report, and to choose by."""
    validation = torch.stack([c.validation for c in curves]).nan_to_num(nan=-math.inf)  # (runs, rates, marks)
    later = validation[:, :, 1:] if validation.shape[2] > 1 else validation
    rate = int(later.mean((0, 2)).argmax())
    return rate, torch.stack([c.report[rate] for c in curves]), validation[:, rate]


def _row(run: _Run, episodes: Sequence[Episode], budget: Budget, threshold: float) -> Row:
    rate, report, validation = _chosen(run.curves, budget)
    marks = torch.tensor(budget.judged)
    firsts = [marks[scores >= threshold].tolist()[:1] for scores in report]
    reached = [first[0] for first in firsts if first]
    median = sorted(first[0] if first else math.inf for first in firsts)[(len(firsts) - 1) // 2]
    best = report.gather(1, validation.argmax(1, keepdim=True)).mean().item()
    spread = (diversity(starts, each.target.spec) for starts, each in zip(run.starts, episodes, strict=True))
    known = [s for s in spread if s is not None]
    deviation = report.std(0) if len(report) > 1 else torch.zeros_like(report[0])
    curve = zip(budget.judged, report.mean(0).tolist(), deviation.tolist(), strict=True)
    return Row(
        name=run.arm.name,
        generated=run.arm.generated,
        of=run.arm.of,
        rate=budget.rates[rate],
        curve=tuple(curve),
        best=best,
        steps=None if math.isinf(median) else float(median),
        reached=len(reached) / len(firsts),
        diversity=sum(known) / len(known) if known else None,
        seconds=run.arm.seconds,
        drawing=run.drawing,
    )
