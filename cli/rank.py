"""`paramsmith rank MODELS...`: which of several models to use for a task, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput

from .output import json_option, show_json, show_table, show_warning, wants_json
from .task_options import TaskOptions, check_task_options, device_name, make_tasks, task_options

if TYPE_CHECKING:
    from paramsmith.merge.rank import Ranking
    from paramsmith.merge.task import Task

SCORES = ("gradient", "ped", "logme", "sfda", "osborn", "flips")
PAIRS = {"flips": "right, where that one is wrong", "osborn": "W_C"}  # what the numbers of the pairs are


@click.command("rank", short_help="Rank models by what they promise for a task.")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", metavar="MODEL", help="The model the others were tuned from: for gradient, and for flips.")
@click.option("--by", type=click.Choice(SCORES), default="gradient", show_default=True, help="The score.")
@click.option("--then", type=click.Choice(("logme", "sfda")), default="logme", help="What judges after ped.  [logme]")
@click.option("--general", multiple=True, metavar="FILE | FILE.py:FUNCTION", help="ped: general data, to rescale by.")
@click.option("--source", multiple=True, metavar="FILE | FILE.py:FUNCTION", help="osborn: each model's own data.")
@click.option("--count", type=click.IntRange(min=1), metavar="K", help="osborn: how many models to choose.")
@task_options
@json_option
def command(
    models: tuple[str, ...],
    base: str | None,
    by: str,
    then: str,
    general: tuple[str, ...],
    source: tuple[str, ...],
    count: int | None,
    given: TaskOptions,
) -> None:
    """Rank MODELS by what they promise for the task of the data, best first.

    \b
    gradient  how steeply the base's loss changes along each task vector; one pass of the data for all models
    logme     how well a linear model on a model's features explains the labels
    sfda      how surely a Fisher discriminant on its features tells the classes apart
    ped       logme or sfda after the classes have pushed each other apart, as in fine-tuning
    osborn    which set to use together, by domain, task and agreement; needs --source
    flips     the share of examples that it gets right and the base (or else the others) wrong

    \b
    paramsmith rank A B C --base BASE --data reviews.jsonl
    paramsmith rank A B C --task mine.py:make_task --by ped --then sfda
    paramsmith rank A B --data target.csv --by osborn --source a.csv --source b.csv --count 1
    """
    _check(models, base, by, source, given)
    from paramsmith.merge.rank import rank

    sources = _sources(models, source, given) if source else None
    rescaling = _maker(general, given) if general else None
    ranking = rank(
        models,
        base,
        _target(by, given),
        by=by,  # type: ignore[arg-type]  # one of SCORES
        then=then,  # type: ignore[arg-type]
        general=rescaling,
        sources=sources,
        count=count,
        limit=given.limit,
    )
    _show(ranking, by)


for _option in command.params:  # nothing is written, and memory is the model's
    if isinstance(_option, click.Option) and _option.name in ("force", "memory", "quiet"):
        _option.hidden = True


def _check(models: Sequence[str], base: str | None, by: str, source: Sequence[str], given: TaskOptions) -> None:
    """What is wrong with the words, before anything is loaded."""
    check_task_options(given)
    device_name(given)
    if by == "gradient" and base is None:
        raise InvalidInput("the gradient score needs the base", "add --base MODEL, or rank --by ped, logme or sfda")
    if by == "osborn" and len(source) not in (1, len(models)):
        told = f"{len(source)} sources are given for {len(models)} models"
        raise InvalidInput(told, "one --source a model, in their order, or one function for all of them")


def _target(by: str, given: TaskOptions) -> Callable[[str], list[Task]]:
    """Makes the task to rank for; where only features are looked at, its classes need not be those of the head."""
    foreign = bool(given.data) and by in ("ped", "logme", "sfda", "osborn")

    def make(checkpoint: str) -> list[Task]:
        tasks = make_tasks(given, checkpoint, labels=not foreign)
        if foreign:
            from paramsmith.merge.rank.labelled import with_labels

            how = (given.data, given.label or "label", given.limit, given.shuffle, given.seed)
            tasks = [with_labels(task, *how) for task in tasks]
        return _placed(tasks, given)

    return make


def _maker(references: Sequence[str], given: TaskOptions) -> Callable[[str], list[Task]]:
    """Makes a checkpoint's tasks, without labels, of data files and functions."""
    files = tuple(reference for reference in references if ".py:" not in reference)
    given_each = [replace(given, task=reference, data=()) for reference in references if ".py:" in reference]
    given_each += [replace(given, task=None, data=files)] if files else []

    def make(checkpoint: str) -> list[Task]:
        made = (make_tasks(one, checkpoint, labels=False) for one in given_each)
        return _placed([task for tasks in made for task in tasks], given)

    return make


def _placed(tasks: list[Task], given: TaskOptions) -> list[Task]:
    for task in tasks:
        task.model.to(device_name(given))
    return tasks


def _sources(models: Sequence[str], source: Sequence[str], given: TaskOptions) -> Callable[[str], list[Task]]:
    """Makes the task of a model's own data: of its place in the list, or of the one that is for all."""
    of_model = dict(zip(models, source if len(source) > 1 else list(source) * len(models), strict=True))
    return lambda checkpoint: _maker([of_model[checkpoint]], given)(checkpoint)


def _show(ranking: Ranking, by: str) -> None:
    if wants_json():
        return show_json(ranking.to_json())
    for note in ranking.notes:
        show_warning(note)
    details = list(ranking.rows[0].details)
    rows = [[row.model, _number(row.score), *(_number(row.details[d]) for d in details)] for row in ranking.rows]
    columns = [name.replace("_", " ") for name in details]
    show_table(("model", "score", *columns), rows, ("score", *columns))
    if ranking.pairs:
        numbers = [str(i) for i in range(1, len(ranking.names) + 1)]
        click.echo()
        pairs = zip(numbers, ranking.names, ranking.pairs, strict=True)
        table = [[i, name, *(_number(value) for value in values)] for i, name, values in pairs]
        show_table(("", PAIRS.get(by, ""), *numbers), table, ("", *numbers))
    return None


def _number(value: float) -> str:
    return f"{value:.5g}"
