"""Model soups: which of several fine-tunes of one model are worth averaging, by a score."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from paramsmith.coefficients import Coefficients, uniform_over
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.merge.api import plan
from paramsmith.progress import Progress
from paramsmith.recipe import Recipe, entries
from paramsmith.resumable import Resumable

from .candidates import Candidates, Ingredients, Limits
from .evaluation import Evaluate, Evaluation
from .trials import Trial, TrialLog

SoupStrategy = Literal["greedy", "maximum", "uniform"]


@dataclass(frozen=True)
class SoupReport:
    """What became of it: the models in the soup in the order they were taken, and the scores there are."""

    output: Path
    pool: tuple[int, ...]
    scores: tuple[float | None, ...]  # of each model by itself
    score: float | None  # of the soup
    trials: int
    resumed: int
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told: dict[str, object] = {"output": str(self.output), "pool": list(self.pool), "scores": list(self.scores)}
        told |= {"score": self.score, "trials": self.trials, "resumed": self.resumed}
        return {**told, "warnings": list(self.warnings), "seconds": self.seconds}


def soup(
    models: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    evaluate: Evaluate | None = None,
    strategy: SoupStrategy = "greedy",
    p: int | None = None,
    exclude: Sequence[str] = (),
    memory: str | int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> SoupReport:
    """Choose the models of an average.

    `greedy`: models in order of their scores, best first; the first is taken, each other when
    score(mean(pool and it)) >= score(mean(pool)). `maximum`: the `p` best. `uniform`: all of them, scored only when
    there is an evaluation. A model without a finite score is never taken. With N models at most 2N - 1 trials; a
    running float32 sum makes each of them a pass over two models, whatever N.

    Writes coefficients of `linear`, 1 for the models taken and 0 for the rest, to `output` and beside it the log of
    trials (see trials.py); after an interruption the same call goes on. Raises InvalidInput, Refused, or Failed when
    the evaluation fails.

    Papers: Wortsman et al., Model soups, arXiv:2203.05482; Liu et al., POINTS, arXiv:2409.04828.
    """
    began, target = time.perf_counter(), Path(output)
    _check(strategy, p, len(models), evaluate)
    evaluation = None if evaluate is None else Evaluation.of(evaluate)
    made_of = Ingredients.of(models, None, target, exclude=exclude)
    recipe = Recipe(method="linear", models=entries(made_of.models), exclude=made_of.exclude)
    warnings = list(plan(recipe, target.with_name(f".{target.name}.partial") / "soup").warnings)
    key = hashlib.sha256(
        json.dumps([*made_of.identity, "soup", evaluation and evaluation.identity]).encode()
    ).hexdigest()
    with Resumable(target, key, force=force) as work:
        log = TrialLog(target, key, force=force)
        pot = _Pot(Candidates(work.folder, made_of.bare, Limits(memory, device, threads)), made_of)
        tasting = _Tasting(pot, log, evaluation, len(models), progress)
        pool = tasting.choose(strategy, p)
        score = None if tasting.best is None else tasting.best.score
        found = Coefficients(
            method="linear",
            models=tuple(made_of.digests[path] for path in made_of.models),
            default=uniform_over([float(i in pool) for i in range(len(models))]),
            learned={"learner": "soup", "strategy": strategy, "p": p, "score": score, "order": list(pool)},
        )
        if tasting.best:
            log.close(tasting.best)
        work.publish_bytes(found.to_bytes(target.suffix == ".safetensors"))
    alone = tuple(trial.score for trial in tasting.alone)
    lost = [made_of.models[i] for i, its in enumerate(alone) if its is None]
    warnings += [f"{each}: has no finite score; if its weights are not finite, merge without it" for each in lost]
    seconds, resumed = time.perf_counter() - began, tasting.count - log.evaluated
    return SoupReport(target, pool, alone, score, tasting.count, resumed, tuple(warnings), seconds)


def _check(strategy: str, p: int | None, models: int, evaluate: Evaluate | None) -> None:
    if strategy not in get_args(SoupStrategy):
        raise InvalidInput(
            f"{printable(strategy)!r} is no strategy", "it is one of " + ", ".join(get_args(SoupStrategy))
        )
    if evaluate is None and strategy != "uniform":
        raise InvalidInput(
            f"a {strategy} soup needs an evaluation", "a command with {model} in it, or file.py:function"
        )
    if (p is None) != (strategy != "maximum"):
        raise InvalidInput("p says how many models a maximum soup takes", "give both, --strategy maximum --p 3")
    if p is not None and not 1 <= p <= models:
        raise InvalidInput(
            f"the {p} best of {models} models cannot be taken", "give 1 or more, and no more than there are"
        )


class _Pot:
    """Makes the mean of a pool of models, as the merge of all with weights 1 and 0 has it."""

    def __init__(self, candidates: Candidates, made_of: Ingredients) -> None:
        self._candidates, self._made_of = candidates, made_of
        # names, config, integers and what is excluded are the first model's, in the pool or not
        self._how: dict[str, object] = {"base": made_of.models[0], "method": "linear", "exclude": made_of.exclude}

    def mean(self, pool: Sequence[int], grown: bool) -> Path:
        """The candidate; one that has `grown` by its last model is made from the sum of the others."""
        models = [self._made_of.models[i] for i in pool]
        if len(pool) == 1 and not self._made_of.exclude:
            return Path(models[0])
        if not (grown and self._made_of.stored_wide):
            return self._candidates.make(models, **self._how)
        both = [models[-1], str(self._sum(pool[:-1]))]
        return self._candidates.make(both, **self._how, weight=1 / len(pool), normalize=False)

    def _sum(self, pool: Sequence[int]) -> Path:
        last = self._made_of.models[pool[-1]]
        if len(pool) == 1:
            return Path(last)
        if self._file(pool).exists():
            return self._file(pool)
        before = self._sum(pool[:-1])
        how = {**self._how, "weight": 1.0, "normalize": False, "out_dtype": self._made_of.wide}
        made = self._candidates.keep([str(before), last], self._file(pool).stem, **how)
        if len(pool) > 2:
            before.unlink()
        return made

    def _file(self, pool: Sequence[int]) -> Path:
        said = hashlib.sha256(json.dumps(list(pool)).encode()).hexdigest()[:8]
        return self._candidates.folder / f"sum-{len(pool)}-{said}.safetensors"


class _Tasting:
    """The trials of one soup; `alone` are the scores of the models by themselves, `best` is the trial of the pool."""

    def __init__(
        self, pot: _Pot, log: TrialLog, evaluation: Evaluation | None, models: int, progress: Progress | None
    ) -> None:
        self._pot, self._log, self._evaluation, self._models = pot, log, evaluation, models
        self._progress = progress
        self.count = 0
        self.alone: list[Trial] = []
        self.best: Trial | None = None

    def choose(self, strategy: str, p: int | None) -> tuple[int, ...]:
        """The pool, in the order the models were taken. Failed when no model has a score."""
        everyone = tuple(range(self._models))
        if self._evaluation is None:
            return everyone
        if strategy == "uniform":
            self.best = self._taste(everyone, self._evaluation)
            return everyone
        self.alone = [self._taste((i,), self._evaluation) for i in everyone]
        order = [i for i in sorted(everyone, key=lambda i: -self.alone[i].worth) if self.alone[i].score is not None]
        if not order:
            raise Failed(f"none of {self._models} models has a finite score", "see the evaluation, and the models")
        if strategy == "maximum":
            pool = tuple(order[:p])
            self.best = self._taste(pool, self._evaluation)
            return pool
        pool, self.best = tuple(order[:1]), self.alone[order[0]]
        for i in order[1:]:
            trial = self._taste((*pool, i), self._evaluation, grown=True)
            if trial.worth >= self.best.worth:
                pool, self.best = (*pool, i), trial
        return pool

    def _taste(self, pool: tuple[int, ...], evaluation: Evaluation, *, grown: bool = False) -> Trial:
        weights = [float(i in pool) for i in range(self._models)]
        trial = self._log.run({"weight": weights}, lambda: evaluation(self._pot.mean(pool, grown)))
        self.count += 1
        if self._progress:
            self._progress(self.count, 2 * self._models - 1)
        return trial
