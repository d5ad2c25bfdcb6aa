"""Searching numbers of a merge against a score: the best factor on the update, or the best weights of the models."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from paramsmith.coefficients import Coefficients, uniform_over
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.params import Setting
from paramsmith.registry import find_method
from paramsmith.resumable import Resumable

from . import strategies
from .candidates import Candidates, Ingredients, Limits, Scaled
from .evaluation import Evaluate, Evaluation
from .strategies import Point, Spent
from .trials import Trial, TrialLog

StrategyName = Literal["line", "coordinate", "evolution", "cma", "grid", "dirichlet"]
LAMBDA = "lambda_"


@dataclass(frozen=True)
class SearchReport:
    """What a search found: the best trial, of how many, and how many of those an earlier run had done."""

    output: Path
    parameter: str
    values: Point
    score: float
    trials: int
    resumed: int
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told: dict[str, object] = {"output": str(self.output), "parameter": self.parameter}
        told |= {"values": list(self.values)}
        told |= {"score": self.score, "trials": self.trials, "resumed": self.resumed}
        return {**told, "warnings": list(self.warnings), "seconds": self.seconds}


def search(
    models: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    evaluate: Evaluate,
    method: str = "task_arithmetic",
    parameters: Mapping[str, object] | None = None,
    over: str = "lambda",
    strategy: StrategyName | None = None,
    budget: int = 50,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    statistics: Sequence[str | os.PathLike[str]] = (),
    exclude: Sequence[str] = (),
    memory: str | int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SearchReport:
    """Find the values of one parameter of a merge, `over`, with which it scores best, in `budget` trials or fewer.

    over `lambda`, the factor on a method's update: the update U is merged once and kept on the disk, and a trial is
    x_0 + lambda U, one pass over two models; for a function in memory, which then holds three. Any other number of
    the method (`weight`, `density`, `t`): one value a model where the method has that, and a trial is a merge.
    bounds: the least and the greatest value, (0, 2) for lambda and (0, 1) for others.

    strategy: `line` (a grid, then a golden section), `coordinate` (line after line), `evolution` (differential
    evolution), `cma` (CMA-ES), `grid` (even steps; the weights of two models sum to 1), `dirichlet` (weights of sum 1
    at random); `line` for one value, else `coordinate`. `seed` is that of the proposals and of methods that draw.

    Writes coefficients to `output` with which a merge gives the best trial's model again, up to a rounding, and beside
    it the log of trials (see trials.py); after an interruption the same call goes on. Raises InvalidInput, Refused, or
    Failed when the evaluation fails.

    Sources: grids as in Matena and Raffel, arXiv:2111.09832; evolution as in Akiba et al., arXiv:2403.13187.
    """
    began, target, given = time.perf_counter(), Path(output), dict(parameters or {})
    if budget < 1:
        raise InvalidInput(f"a budget of {budget} leaves no trial", "give --budget 1 or more")
    if not models:
        raise InvalidInput("no models given", "give two or more")
    space = _space(method, over, len(models), bounds, given)
    strategy = strategy or ("line" if len(space.start) == 1 else "coordinate")
    look = _strategy(strategy, space)
    evaluation = Evaluation.of(evaluate)
    made_of = Ingredients.of(models, base, target, statistics=statistics, exclude=exclude)
    drawn = seed if find_method(method).random else None
    # strategy and bounds make no difference to a candidate's score: another search may go on with these trials
    held = [*made_of.identity, method, given, space.field, drawn, evaluation.identity]
    key = hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()
    with Resumable(target, key, force=force) as work:
        log = TrialLog(target, key, force=force)
        candidates = Candidates(work.folder, made_of.bare, Limits(memory, device, threads))
        bench = _Bench(candidates, made_of, {**given, "method": method, "seed": seed}, space)
        trials = _Trials(bench, log, evaluation, space, budget, progress)
        with contextlib.suppress(Spent):
            look(trials.score, [space.bounds] * len(space.start), space.start, budget, seed)
        best = trials.best()
        values = tuple(best.parameters[space.shown])
        learned = {"learner": "search", "strategy": strategy, "trials": len(trials.seen)}
        found = Coefficients(
            method=method,
            parameter=space.field,
            parameters=given,
            models=tuple(made_of.digests[path] for path in made_of.models),
            base=made_of.base and made_of.digests[made_of.base],
            default=uniform_over(values * space.repeated),
            seed=drawn,
            learned={**learned, "score": best.score, "seed": seed, "bounds": list(space.bounds)},
        )
        log.close(best)
        work.publish_bytes(found.to_bytes(target.suffix == ".safetensors"))
    warnings = (*candidates.warnings, *trials.warnings())
    seconds, resumed = time.perf_counter() - began, len(trials.seen) - log.evaluated
    return SearchReport(target, space.shown, values, best.worth, len(trials.seen), resumed, warnings, seconds)


@dataclass(frozen=True)
class _Space:
    """What is searched: a parameter of a method, its values' bounds, and where to begin."""

    field: str
    shown: str
    start: Point
    bounds: tuple[float, float]
    repeated: int = 1  # how often a value stands in the file: one number may be every model's


def _space(
    method: str, over: str, models: int, bounds: tuple[float, float] | None, given: Mapping[str, object]
) -> _Space:
    params = find_method(method).params
    names = {(info.alias or name): name for name, info in params.model_fields.items()}
    field = names.get(over, over)
    shown = next((word for word, name in names.items() if name == field), over)
    kind = params.settings().get(field)
    default: object = getattr(params(), field, None)
    number = default.at(0, "", None) if isinstance(default, Setting) else default
    if kind is None or isinstance(number, bool) or not isinstance(number, int | float):
        able = [word for word, name in names.items() if name in params.settings()]
        hint = f"its numbers: {', '.join(able)}" if able else "it has none"
        raise InvalidInput(f"{method} has no number called {printable(over)} to search", hint)
    if field in given or shown in given:
        raise InvalidInput(f"{shown} is given and searched for", "leave it out of the parameters")
    low, high = bounds or ((0.0, 2.0) if field == LAMBDA else (0.0, 1.0))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidInput(f"nothing lies between the bounds {low} and {high}", "give the least, then the greatest")
    each = models if kind == "model" else 1
    width = 1 if field == LAMBDA else each
    begin = 1 / models if field == "weight" else (low + high) / 2
    return _Space(field, shown, (min(max(begin, low), high),) * width, (low, high), each // width)


def _strategy(name: str, space: _Space) -> strategies.Strategy:
    width = len(space.start)
    if name not in get_args(StrategyName):
        raise InvalidInput(f"{printable(name)!r} is no strategy", "it is one of " + ", ".join(get_args(StrategyName)))
    if name == "line" and width > 1:
        raise InvalidInput(f"a line is of one number, {space.shown} has {width}", "take coordinate or evolution")
    if name in ("grid", "dirichlet") and width > 1 and space.field != "weight":
        raise InvalidInput(f"{name} is for weights, not for {width} values of {space.shown}", "take coordinate")
    if name == "grid" and width > 2:
        raise InvalidInput(f"a grid over the weights of {width} models is too large", "take dirichlet")
    if name == "dirichlet" and width < 2:
        raise InvalidInput(f"dirichlet is for the weights of two models or more, not for {space.shown}", "take line")
    return strategies.pair_grid if name == "grid" and width == 2 else _STRATEGIES[name]


class _Bench:
    """Makes the candidate of a point."""

    def __init__(
        self, candidates: Candidates, made_of: Ingredients, recipe: Mapping[str, object], space: _Space
    ) -> None:
        self._candidates, self._made_of, self._recipe, self._space = candidates, made_of, recipe, space
        scales = find_method(str(recipe["method"])).zero == "lambda" and space.field == LAMBDA
        self._prepared = scales and made_of.stored_wide
        self._scaled: Scaled | None = None

    def make(self, point: Point, as_tensors: bool) -> Path | dict[str, Tensor]:
        """Merge it, into memory when that is of use. InvalidInput when the method cannot take the values."""
        given, base, exclude = self._made_of, self._made_of.base, self._made_of.exclude
        recipe: dict[str, object] = {**self._recipe, "base": base, "exclude": exclude, "statistics": given.statistics}
        if not self._prepared or base is None:
            value = point[0] if len(point) == 1 else list(point)
            return self._candidates.make(given.models, **{**recipe, self._space.shown: value})
        whole = {**recipe, "lambda": 1.0, "out_dtype": given.wide}
        update = self._candidates.keep(given.models, "update", **whole)  # x_0 + U
        if as_tensors:
            self._scaled = self._scaled or Scaled(Path(base), update)
            return self._scaled.at(point[0])
        scaled = {"method": "task_arithmetic", "base": base, "exclude": exclude, "lambda": point[0]}
        return self._candidates.make([str(update)], **scaled)


class _Trials:
    """The trials of one search: what a strategy calls to have a point scored."""

    def __init__(
        self,
        bench: _Bench,
        log: TrialLog,
        evaluation: Evaluation,
        space: _Space,
        budget: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._bench, self._log, self._evaluation, self._space = bench, log, evaluation, space
        self._budget, self._progress = budget, progress
        self._refused = ""
        self.seen: dict[Point, Trial] = {}

    def score(self, point: Point) -> float:
        """The score of a point, -inf where it has none. Spent when it is new and the budget used up."""
        low, high = self._space.bounds
        tidy = tuple(min(max(float(f"{x:.6g}"), low), high) for x in point)  # six digits are for people to read
        if tidy not in self.seen:
            if len(self.seen) == self._budget:
                raise Spent
            self.seen[tidy] = self._log.run({self._space.shown: list(tidy)}, lambda: self._evaluated(tidy))
            if self._progress:
                self._progress(len(self.seen), self._budget)
        return self.seen[tidy].worth

    def best(self) -> Trial:
        """The first of the best. Failed when no trial has a score."""
        best = max(self.seen.values(), key=lambda trial: trial.worth)
        if best.score is None:
            raise Failed(f"none of {len(self.seen)} trials has a finite score", self._refused or "see the evaluation")
        return best

    def warnings(self) -> list[str]:
        """A sentence when trials have no score."""
        without = sum(trial.score is None for trial in self.seen.values())
        told = f"{without} of {len(self.seen)} trials have no finite score and count as the worst"
        return [told + (f": {self._refused}" if self._refused else "")] if without else []

    def _evaluated(self, point: Point) -> float | None:
        try:
            model = self._bench.make(point, self._evaluation.score_tensors is not None)
        except InvalidInput as problem:
            if not self._log.size:
                raise  # nothing could be made yet: it is not this point that is wrong
            self._refused = problem.fact
            return None
        return self._evaluation(model)


_STRATEGIES: Mapping[str, strategies.Strategy] = {
    "line": strategies.line,
    "coordinate": strategies.coordinate,
    "evolution": strategies.evolution,
    "cma": strategies.cma,
    "grid": strategies.grid,
    "dirichlet": strategies.dirichlet,
}
