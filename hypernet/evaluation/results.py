"""What an evaluation finds: a row for each start, how new a generator's samples are, and sentences on both."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from paramsmith.params import Params

from .copying import Copying

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
    networks: int = Field(
        default=4, ge=0, le=10_000, description="networks trained for the starts `mean` and `nearest`, without a zoo"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of all draws")

    @property
    def judged(self) -> tuple[int, ...]:
        """Every step at which scores are taken."""
        return tuple(sorted({*self.marks, *range(0, max(self.marks) + 1, self.every)}))


@dataclass(frozen=True)
class Row:
    """What came of one arm. `curve` has (step, mean score, standard deviation over all runs), from step 0 on.

    `rate`: the learning rate that its validation rows chose; `best`: the score where these rows would have stopped.
    `steps`: median of the steps to the threshold, None where most runs never came there; `reached`: the share of the
    runs that did. `diversity`: as `starts.diversity`. `seconds`: what the start cost to make; `drawing`: seconds for
    the weights of one target. `of`: the name of the arm that this is a control of.
    """

    name: str
    generated: bool
    of: str | None
    rate: float
    curve: tuple[tuple[int, float, float], ...]
    best: float
    steps: float | None
    reached: float
    diversity: float | None
    seconds: float | None
    drawing: float

    def at(self, mark: int) -> float:
        """The mean score at a step."""
        return next(mean for step, mean, _ in self.curve if step == mark)

    def spread(self, mark: int) -> float:
        """The standard deviation at a step."""
        return next(deviation for step, _, deviation in self.curve if step == mark)

    @property
    def rival(self) -> bool:
        """Whether it is what a generator has to beat."""
        return not self.generated and self.of is None


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what was done. `copying`: of each generator that was held against a zoo, by name.

    `zoo` counts its `networks` and `tasks` to train on, networks `held out`, and episodes `judged by`; `left_out` tells
    why a rival cannot be computed from it.
    """

    rows: tuple[Row, ...]
    budget: Budget
    threshold: float
    copying: dict[str, Copying]
    zoo: dict[str, int] | None = None
    left_out: dict[str, str] | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told = {**self.budget.model_dump(mode="json"), "threshold": self.threshold}
        found: dict[str, object] = {"budget": told, "starts": [asdict(row) for row in self.rows]}
        if self.zoo is not None:
            found |= {"zoo": self.zoo, "left_out": self.left_out or {}}
        if self.copying:
            found["copying"] = {name: asdict(copied) for name, copied in self.copying.items()}
        return {**found, "verdicts": list(self.verdicts())}

    @property
    def generated(self) -> tuple[Row, ...]:
        """The rows of generators, without controls."""
        return tuple(row for row in self.rows if row.generated and row.of is None)

    def controls(self, name: str) -> tuple[Row, ...]:
        """The controls of a generator."""
        return tuple(row for row in self.rows if row.of == name)

    def verdicts(self) -> tuple[str, ...]:
        """One sentence on each generated start and each of first score, last score and best, worse ones first.

        Before all of them: which does not beat `ridge`, and which draws copies.
        """
        others = [row for row in self.rows if row.rival]
        told: list[tuple[bool, str]] = []
        last = max(self.budget.marks)
        for row in self.generated:
            for what, value in (
                ("at step 0", _first),
                (f"after {last} steps", _last),
                ("at its best", _best),
            ):
                rival = max(others, key=value)
                gap = value(row) - value(rival)
                told.append((gap > 0, f"{row.name} is {_beside(gap)} {rival.name} {what}"))
        return (*self._warnings(), *(sentence for _, sentence in sorted(told, key=lambda pair: pair[0])))

    def _warnings(self) -> list[str]:
        ridge = next((row for row in self.rows if row.rival and row.name == "ridge"), None)
        found = []
        for row in self.generated:
            if ridge is not None and not _first(row) > _first(ridge):
                beside = f"{_first(row):.3g} against {_first(ridge):.3g}"
                found.append(f"{row.name} does not beat ridge, a linear map, at step 0: {beside}")
            copied = self.copying.get(row.name)
            if copied is not None and copied.copies:
                found.append(f"{copied.copies:.0%} of what {row.name} draws are copies of networks of the zoo")
        return found


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
