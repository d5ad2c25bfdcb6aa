"""Which source models suit a task: one ranked table, by any of the scores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed, InvalidInput, ParamsmithError, printable
from paramsmith.memory import StateDict
from paramsmith.merge.learn.scores import gradient_scores
from paramsmith.merge.task import Task
from paramsmith.statistics import Readable

from .features import Features, features_and_predictions_of, features_of, load_weights, predictions_of
from .flips import complementarity
from .osborn import Source, select
from .ped import descend
from .transferability import logme, sfda

By = Literal["gradient", "ped", "logme", "sfda", "osborn", "flips"]
Then = Literal["logme", "sfda"]
Given: TypeAlias = str | os.PathLike[str] | Checkpoint | StateDict
Make: TypeAlias = Callable[[str], Task | Sequence[Task]]
Tasks: TypeAlias = Make | Task | Sequence[Task]
_Made: TypeAlias = Callable[[Given], Sequence[Task]]


@dataclass(frozen=True)
class Row:
    """One model: its score, and the numbers that it is made of."""

    model: str
    score: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """The models, best first; of equal ones the first given. `pairs` are the numbers of each pair of `names`."""

    by: str
    rows: tuple[Row, ...]
    higher_is_better: bool = True
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[float, ...], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        rows = [
            {"rank": rank, "model": row.model, "score": row.score, **row.details}
            for rank, row in enumerate(self.rows, 1)
        ]
        told: dict[str, object] = {"by": self.by, "higher_is_better": self.higher_is_better, "models": rows}
        if self.pairs:
            told["pairs"] = {"models": list(self.names), "values": [list(row) for row in self.pairs]}
        return {**told, "notes": list(self.notes)}


@dataclass(frozen=True)
class _Told:
    then: Then
    general: _Made | None
    sources: _Made | None
    count: int | None
    features: Features | None
    limit: int | None


def rank(
    models: Sequence[Given],
    base: Given | None,
    tasks: Tasks,
    *,
    by: By = "gradient",
    then: Then = "logme",
    general: Tasks | None = None,
    sources: Tasks | None = None,
    count: int | None = None,
    features: Features | None = None,
    limit: int | None = None,
) -> Ranking:
    """Rank models by what they promise for a task.

    gradient  L1 norm over tensors of dL/dlambda, the slope of the base's loss along the model's task vector (higher);
              its detail `slope` is their sum, negative where adding the whole vector lowers the loss
    logme     evidence of a linear model on its features (higher)
    sfda      accuracy, in probability, of a Fisher discriminant on its hardened features (higher)
    ped       `then`, one of these two, after potential-energy descent (higher)
    osborn    greedy choice of a set of `count` by domain, task and cohesion (lower; in the order of choice)
    flips     share of examples that it gets right and the base wrong, or without a base the others on average (higher)

    models, base: paths, opened checkpoints or dicts in memory. tasks: a function that makes the task of a path, or
    several; or tasks, whose models are given the weights of each in turn, and keep the last. Scores of several tasks
    are averaged. general (ped): the same for general data, by which the features are rescaled; sources (osborn): makes
    the task of a model's own data. features(model, batch): where the input of the last Linear is not what is wanted.
    limit: examples of each task. Raises InvalidInput or Failed.

    Papers: see the modules of this folder; gradient: Zhang et al., arXiv:2407.02880.
    """
    for value, known in ((by, get_args(By)), (then, get_args(Then))):
        if value not in known:
            raise InvalidInput(f"nothing ranks by {printable(value)!r}", "by one of " + ", ".join(known))
    if not models:
        raise InvalidInput("there are no models to rank", "give at least one")
    if count is not None and not 1 <= count <= len(models):
        raise InvalidInput(f"{count} of {len(models)} models are to be chosen", "choose at least one, at most all")
    general_made = None if general is None else _maker(general)
    sources_made = None if sources is None else _maker(sources)
    told = _Told(then, general_made, sources_made, count, features, limit)
    if by == "gradient":
        ranking = _by_gradient(models, tasks, base, told)
    elif by == "osborn":
        ranking = _by_osborn(models, _maker(tasks), told)
    elif by == "flips":
        ranking = _by_flips(models, _maker(tasks), base, told)
    else:
        ranking = _by_features(models, _maker(tasks), by, told)
    for row in ranking.rows:
        if not math.isfinite(row.score):
            raise Failed(f"{printable(row.model)}: its score is {row.score}", "leave this model out")
    return ranking


def _maker(tasks: Tasks, load: bool = True) -> _Made:
    """What gives a model's tasks: the function of its path, or the tasks themselves, with its weights if `load`."""
    held = [tasks] if isinstance(tasks, Task) else list(tasks) if isinstance(tasks, Sequence) else []

    def make(model: Given) -> Sequence[Task]:
        made = held if isinstance(tasks, Task | Sequence) else tasks(_label(model))
        found = list(made) if isinstance(made, Sequence) else [made]
        if not found:
            raise InvalidInput(f"{printable(_label(model))}: there is no task", "give at least one")
        if held and load:
            with ExitStack() as stack:
                checkpoint = _opened(model, stack)
                for task in held:
                    load_weights(task, checkpoint)
        return found

    return make


def _by_gradient(models: Sequence[Given], tasks: Tasks, base: Given | None, told: _Told) -> Ranking:
    if base is None:
        raise InvalidInput("the gradient score needs the base", "give the model that the others were tuned from")
    with ExitStack() as stack:
        opened = [_opened(model, stack) for model in (base, *models)]
        given = _maker(tasks, load=False)(base)  # which get the base's weights below
        found = gradient_scores(given, opened[0], opened[1:], limit=told.limit)
    slopes = found.values.sum(1)
    rows = [
        Row(_label(model), float(score), {"slope": float(slope)})
        for model, score, slope in zip(models, found.whole, slopes, strict=True)
    ]
    return _sorted("gradient", rows)


@contextmanager
def _about(model: Given) -> Iterator[None]:
    """Let what goes wrong name the model."""
    try:
        yield
    except ParamsmithError as problem:
        label = printable(_label(model))
        if label not in problem.fact:
            raise type(problem)(f"{label}: {problem.fact}", problem.hint) from problem
        raise


def _opened(model: Given, stack: ExitStack) -> Readable:
    return stack.enter_context(Checkpoint.open(model)) if isinstance(model, str | os.PathLike) else model


def _label(model: Given) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else model.label


def _sorted(by: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> Ranking:
    return Ranking(by, tuple(sorted(rows, key=lambda row: -row.score)), notes=tuple(notes))


def _by_features(models: Sequence[Given], make: _Made, by: str, told: _Told) -> Ranking:
    name = told.then if by == "ped" else by
    judge = {"logme": logme, "sfda": sfda}[name]
    rows: list[Row] = []
    notes: list[str] = []
    for model in models:
        scores: list[float] = []
        details: list[dict[str, float]] = []
        with _about(model):
            tasks = make(model)
            general = _general(model, told) if by == "ped" else None
            for task in tasks:
                features, labels = features_of(task, features=told.features, limit=told.limit)
                scores.append(judge(features, labels))
                if by == "ped":
                    moved = descend(features, labels, general)
                    details.append({name: scores[-1], "steps": float(len(moved.changes))})
                    scores[-1] = judge(moved.features, labels)
                    if moved.coinciding:
                        told_of = f"{moved.coinciding} pairs of classes have one mean, and did not part"
                        notes.append(f"{_label(model)}: {told_of}")
        mean = {key: _mean([row[key] for row in details]) for key in (details[0] if details else ())}
        rows.append(Row(_label(model), _mean(scores), mean))
    return _sorted(f"{by}+{name}" if by == "ped" else by, rows, notes)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _general(model: Given, told: _Told) -> Tensor | None:
    if told.general is None:
        return None
    tasks = told.general(model)
    found = [features_of(t, features=told.features, limit=told.limit, labelled=False)[0] for t in tasks]
    return torch.cat(found)


def _by_flips(models: Sequence[Given], make: _Made, base: Given | None, told: _Told) -> Ranking:
    everyone = [*models, *([base] if base is not None else [])]
    if len(everyone) < 2:
        raise InvalidInput("one model has nothing to be compared with", "give a base, or another model")
    predictions: list[list[Tensor]] = []
    truth: list[Tensor] = []
    for model in everyone:
        with _about(model):
            read = [predictions_of(task, limit=told.limit) for task in make(model)]
        labels = [label for _, label in read]
        if truth and (len(labels) != len(truth) or not all(map(torch.equal, labels, truth))):
            raise _other_labels(model, models[0])
        truth = labels
        predictions.append([predicted for predicted, _ in read])
    tables = [complementarity(each, labels) for each, labels in zip(zip(*predictions, strict=True), truth, strict=True)]
    table = torch.stack(tables).mean(0)  # (models, models)
    rivals = table[:, len(models) :] if base is not None else table[:, : len(models)]
    backward = table[len(models) :] if base is not None else table[: len(models)]
    others = 1 if base is not None else len(models) - 1
    rows = []
    for i, model in enumerate(models):
        right = _mean([float((p == y).double().mean()) for p, y in zip(predictions[i], truth, strict=True)])
        lost = float(backward[:, i].sum()) / others
        rows.append(Row(_label(model), float(rivals[i].sum()) / others, {"negative_flips": lost, "accuracy": right}))
    pairs = tuple(tuple(row) for row in table.tolist())
    return Ranking("flips", _sorted("flips", rows).rows, names=tuple(map(_label, everyone)), pairs=pairs)


def _by_osborn(models: Sequence[Given], make: _Made, told: _Told) -> Ranking:
    if told.sources is None:
        raise InvalidInput("osborn needs each model's own data", "give the sources, or rank by ped, logme or sfda")
    sources: list[Source] = []
    truth: Tensor | None = None
    for model in models:
        with _about(model):
            near, predicted, labels = _one(make(model), told)
            far, answers, _ = _one(told.sources(model), told, labelled=False)
        if truth is not None and not torch.equal(labels, truth):
            raise _other_labels(model, models[0])
        truth = labels
        sources.append(Source(far, answers, near, predicted))
    found = select(sources, truth if truth is not None else torch.zeros(0), told.count)
    rows = [
        Row(_label(models[i]), cost, {"domain": found.domain[i], "task": found.task[i]})
        for i, cost in zip(found.chosen, found.costs, strict=True)
    ]
    return Ranking("osborn", tuple(rows), False, names=tuple(map(_label, models)), pairs=found.cohesion)


def _one(tasks: Sequence[Task], told: _Told, labelled: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    if len(tasks) > 1:
        raise InvalidInput("osborn takes one task and one source a model", "rank for one at a time")
    return features_and_predictions_of(tasks[0], features=told.features, limit=told.limit, labelled=labelled)


def _other_labels(model: Given, first: Given) -> InvalidInput:
    fact = f"{printable(_label(model))}: its task has other labels than that of {printable(_label(first))}"
    return InvalidInput(fact, "let every model see the same data")
