"""Is a generated start worth having? Beside fresh inits, the mean of trained networks and the nearest of them.

Every start is trained on with every learning rate, its own best chosen on validation rows that no table shows; scores
are those of unseen data. What a generator, or the trained networks, cost to make is told with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Episode, Task
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.training.tasks import drawn
from paramsmith.params import Params

from .finetune import Curves, Data, Schedule, finetune, split
from .starts import Start, Trained, Weights, diversity, fresh, mean_of, nearest

Tell = Callable[[str], None]
Mark = Annotated[int, Field(ge=0, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1e6)]


class Budget(Params):
    """How an evaluation is done."""

    marks: tuple[Mark, ...] = Field(default=(0, 1, 5, 20, 100), min_length=1, description="steps shown")
    rates: tuple[Rate, ...] = Field(default=(1e-3, 3e-3, 1e-2, 3e-2), min_length=1, description="learning rates tried")
    every: int = Field(default=5, gt=0, description="steps between two judgements")
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="score to reach; None: what a random start ends with"
    )
    targets: int = Field(default=3, gt=0, le=10_000, description="test episodes")
    seeds: int = Field(default=3, gt=0, le=10_000, description="draws of each start and of the data's order")
    batch_size: int | None = Field(default=64, gt=0, description="rows a step; None: all")
    zoo: int = Field(default=4, ge=0, le=10_000, description="networks trained for the starts `mean` and `nearest`")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of all draws")

    @property
    def judged(self) -> tuple[int, ...]:
        """Every step at which scores are taken."""
        return tuple(sorted({*self.marks, *range(0, max(self.marks) + 1, self.every)}))


@dataclass(frozen=True)
class Arm:
    """A start to be judged; `seconds` is what it cost to make, None where nobody knows. A control is no candidate."""

    name: str
    start: Start
    seconds: float | None = 0.0
    generated: bool = False
    control: bool = False


@dataclass(frozen=True)
class Row:
    """What came of one arm. `curve` has (step, mean score, standard deviation over all runs)."""

    name: str
    generated: bool
    control: bool
    rate: float
    curve: tuple[tuple[int, float, float], ...]
    best: float
    steps: float | None  # median of the steps to the threshold, None where most runs never came there
    reached: float  # share of the runs that did
    diversity: float | None
    seconds: float | None

    def at(self, mark: int) -> float:
        """The mean score at a step."""
        return next(mean for step, mean, _ in self.curve if step == mark)


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what was done."""

    rows: tuple[Row, ...]
    budget: Budget
    threshold: float

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        from dataclasses import asdict

        told = {**self.budget.model_dump(mode="json"), "threshold": self.threshold}
        return {"budget": told, "starts": [asdict(row) for row in self.rows], "verdicts": list(self.verdicts())}

    def verdicts(self) -> tuple[str, ...]:
        """One sentence on each generated start and each of first score, last score and best, worse ones first."""
        others = [row for row in self.rows if not row.generated and not row.control]
        told: list[tuple[bool, str]] = []
        last = max(self.budget.marks)
        for row in (r for r in self.rows if r.generated and not r.control):
            for what, value in (
                ("at step 0", _first),
                (f"after {last} steps", _last),
                ("at its best", _best),
            ):
                rival = max(others, key=value)
                gap = value(row) - value(rival)
                told.append((gap > 0, f"{row.name} is {_beside(gap)} {rival.name} {what}"))
        return tuple(sentence for _, sentence in sorted(told, key=lambda pair: pair[0]))


def _first(row: Row) -> float:
    return _known(row.curve[0][1])


def _last(row: Row) -> float:
    return _known(row.curve[-1][1])


def _best(row: Row) -> float:
    return _known(row.best)


def _known(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _beside(gap: float) -> str:
    if math.isnan(gap):  # neither has a score
        return "not to be compared with"
    return "as good as" if gap == 0 else f"{abs(gap):.3g} {'better' if gap > 0 else 'worse'} than"


def evaluate(task: Task, arms: Sequence[Arm], budget: Budget | None = None, tell: Tell | None = None) -> Evaluation:
    """Train on from every arm and from the starts without a generator, on the same test episodes.

    The starts: `random`, `orthogonal`, and, of networks trained on episodes of training, `mean` (where all episodes
    share an architecture) and `nearest`. What a task or a module draws from torch's own generator is the same every
    time. Raises InvalidInput for a task whose test episodes lack data to train on, or whose target an arm cannot make,
    and Failed for one whose code raises.
    """
    budget = budget or Budget()
    with one_thread_an_operation(), seeded(budget.seed):  # side by side, these targets are small still
        return _evaluated(task, arms, budget, tell)


def _evaluated(task: Task, arms: Sequence[Arm], budget: Budget, tell: Tell | None) -> Evaluation:
    episodes = [drawn(task, _rng(budget.seed, 0, i), "test") for i in range(budget.targets)]
    data = [_data(episode, budget.seed) for episode in episodes]
    for arm in arms:  # one that does not fit is told of before anything is trained
        arm.start(episodes[0], 0)
    everyone = [Arm("random", fresh()), Arm("orthogonal", fresh("orthogonal"))]
    everyone += _trained_starts(task, episodes, budget) + list(arms)
    found: list[tuple[Arm, list[Curves], list[float | None]]] = []
    for arm in everyone:
        if tell is not None:
            tell(arm.name)
        found.append((arm, *_runs(task, arm, episodes, data, budget)))
    threshold = budget.threshold
    if threshold is None:
        threshold = _chosen(found[0][1], budget)[1][:, -1].mean().item()
    return Evaluation(tuple(_row(*each, budget, threshold) for each in found), budget, threshold)


def wrong_condition(asked: Start, task: Task, seed: int) -> Start:
    """The control of a conditional start: it is asked for another draw's condition of the same shapes."""

    def start(episode: Episode, number: int) -> Weights:
        other = drawn(task, _rng(seed, 1, number), "test").condition
        return asked(Episode(episode.target, other, episode.query, episode.support), number)

    return start


def _data(episode: Episode, seed: int) -> Data:
    if not episode.support:
        raise InvalidInput("a test episode has no support to train on", "give the task's test episodes one")
    train, validation = split(episode.support, 0.2, seed)
    return Data(train, validation, episode.query)


def _trained_starts(task: Task, episodes: Sequence[Episode], budget: Budget) -> list[Arm]:
    if budget.zoo == 0:
        return []
    began, zoo = time.perf_counter(), []
    for i in range(budget.zoo):
        episode = drawn(task, _rng(budget.seed, 2, i), "zoo")
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


def _runs(
    task: Task, arm: Arm, episodes: Sequence[Episode], data: Sequence[Data], budget: Budget
) -> tuple[list[Curves], list[float | None]]:
    """The curves of every episode and seed, each (rates, marks), and the diversity of the weights begun with."""
    curves, spread = [], []
    rates = torch.tensor(budget.rates)
    for episode, held in zip(episodes, data, strict=True):
        starts = [arm.start(episode, seed) for seed in range(budget.seeds)]
        spread.append(diversity(starts, episode.target.spec))
        for seed, start in enumerate(starts):
            stacked = {name: w.detach().expand(len(rates), *w.shape) for name, w in start.items()}
            schedule = Schedule(budget.judged, budget.batch_size, budget.seed + seed)
            curves.append(finetune(task, episode.target, stacked, rates, held, schedule))
    return curves, spread


def _chosen(curves: Sequence[Curves], budget: Budget) -> tuple[int, Tensor, Tensor]:
    """The rate of the largest mean validation score after step 0; with it (runs, marks) to report, and to choose by."""
    validation = torch.stack([c.validation for c in curves]).nan_to_num(nan=-math.inf)  # (runs, rates, marks)
    later = validation[:, :, 1:] if validation.shape[2] > 1 else validation
    rate = int(later.mean((0, 2)).argmax())
    return rate, torch.stack([c.report[rate] for c in curves]), validation[:, rate]


def _row(arm: Arm, curves: list[Curves], spread: list[float | None], budget: Budget, threshold: float) -> Row:
    rate, report, validation = _chosen(curves, budget)
    marks = torch.tensor(budget.judged)
    firsts = [marks[run >= threshold].tolist()[:1] for run in report]
    reached = [first[0] for first in firsts if first]
    median = sorted(first[0] if first else math.inf for first in firsts)[(len(firsts) - 1) // 2]
    best = report.gather(1, validation.argmax(1, keepdim=True)).mean().item()
    known = [s for s in spread if s is not None]
    deviation = report.std(0) if len(report) > 1 else torch.zeros_like(report[0])
    curve = zip(budget.judged, report.mean(0).tolist(), deviation.tolist(), strict=True)
    return Row(
        arm.name,
        arm.generated,
        arm.control,
        budget.rates[rate],
        tuple(curve),
        best,
        None if math.isinf(median) else float(median),
        len(reached) / len(firsts),
        sum(known) / len(known) if known else None,
        arm.seconds,
    )


def _rng(seed: int, purpose: int, number: int) -> torch.Generator:
    from numpy.random import SeedSequence

    state = SeedSequence((seed, purpose, number)).generate_state(1, "uint64")[0]
    return torch.Generator().manual_seed(int(state) >> 1)
