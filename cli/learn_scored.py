"""`paramsmith learn soup`, `search`, `btm`: coefficients by scores of merged models, or by the likelihood of text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .learn_options import (
    base_option,
    check_learning,
    checked_output,
    exclude_option,
    learner,
    show_learned,
    threads_option,
)
from .task_options import TaskOptions, device_name, load_task, make_tasks

if TYPE_CHECKING:
    from paramsmith.merge.learn.evaluation import Evaluate

SOUPS = ("greedy", "maximum", "uniform")
STRATEGIES = ("line", "coordinate", "evolution", "cma", "grid", "dirichlet")
METRICS = ("accuracy", "loss")
_NOT_DATA = ("device", "force", "quiet", "memory")


_EVALUATE = (
    "What scores a model, instead of data: a command with {model} in it, whose last line is the score, or a function"
    " of the tensors by name. Higher is better."
)
_scored = learner(
    click.option("--evaluate", metavar="COMMAND | FILE.py:FUNCTION", help=_EVALUATE),
    click.option("--metric", type=click.Choice(METRICS), default="accuracy", show_default=True, help="With data."),
    exclude_option,
    threads_option,
)


@click.command("soup", short_help="Which models are worth averaging.")
@click.option("--strategy", type=click.Choice(SOUPS), default="greedy", show_default=True)
@click.option("--p", type=click.IntRange(1), metavar="P", help="maximum: how many of the best.")
@_scored
def soup(models: tuple[str, ...], output: Path | None, given: TaskOptions, **options: object) -> None:
    """Choose which of MODELS to average, by the score of the average.

    greedy: best first, each other one when it does not make the average worse; maximum: the P best; uniform: all. The
    trials are logged in FILE.trials.jsonl, and the same command goes on from there.

    \b
    paramsmith learn soup A B C --data heldout.jsonl -o soup.json
    paramsmith merge A B C --coefficients soup.json -o OUT
    """
    target = checked_output(output, given, *models, _function(options))
    evaluate = _evaluation(given, options)
    from paramsmith.merge.learn.soup import soup as run
    from paramsmith.progress import bar

    with bar(not given.quiet, "trials") as progress:
        report = run(models, target, evaluate=evaluate, **options, **_limits(given), progress=progress)  # type: ignore[arg-type]
    chosen = ", ".join(printable(models[i], 60) for i in report.pool)
    score = "" if report.score is None else f", score {report.score:.6g}"
    show_learned(report, target, f"{len(report.pool)} of {len(models)} models{score}: {chosen}", given.quiet)


@click.command("search", short_help="The best lambda, weights or other numbers of a merge.")
@base_option
@click.option("--method", default="task_arithmetic", show_default=True, metavar="NAME", help="Merge method.")
@click.option("--parameter", multiple=True, metavar="NAME=VALUE", help="Another parameter of the method.")
@click.option("--over", default="lambda", show_default=True, metavar="NAME", help="The parameter to search.")
@click.option("--strategy", type=click.Choice(STRATEGIES), help="How.  [line for one number, else coordinate]")
@click.option("--budget", type=int, default=50, show_default=True, help="Most trials.")
@click.option("--bounds", type=float, nargs=2, metavar="LEAST MOST", help="[0 2 for lambda, else 0 1]")
@click.option("--statistics", multiple=True, metavar="FILE", help="For methods that need them; once a model, in order.")
@_scored
def search(
    models: tuple[str, ...],
    output: Path | None,
    given: TaskOptions,
    base: str | None,
    parameter: tuple[str, ...],
    **options: object,
) -> None:
    """Search the numbers of a merge of MODELS for the best score.

    lambda, the factor on the merged update, is the cheapest: the update is made once. weight and the other numbers of
    a method take a merge a trial. The trials are logged in FILE.trials.jsonl, and the same command goes on from there.

    \b
    paramsmith learn search A B --base BASE --method ties --evaluate "./score.sh {model}" -o c.json
    paramsmith learn search A B --base BASE --over weight --strategy evolution --data heldout.jsonl -o c.json
    """
    target = checked_output(output, given, *models, base, _function(options))
    evaluate = _evaluation(given, options)
    if evaluate is None:
        raise InvalidInput("nothing to score a model by", "give --data FILE, --task file.py:make_task or --evaluate")
    from paramsmith.merge.learn.search import search as run
    from paramsmith.progress import bar

    fixed = {"seed": given.seed, "parameters": _parameters(parameter)}
    with bar(not given.quiet, "trials") as progress:
        report = run(models, base, target, evaluate=evaluate, **options, **fixed, **_limits(given), progress=progress)  # type: ignore[arg-type]
    values = ", ".join(f"{value:.6g}" for value in report.values)
    told = f"{report.parameter} {values}, score {report.score:.6g}, {report.trials} trials"
    show_learned(report, target, told, given.quiet)


@click.command("btm", short_help="Weights of experts by the likelihood of a text.")
@click.option("--prior", type=click.Choice(["ema", "mean", "uniform"]), default="ema", show_default=True)
@click.option("--mode", type=click.Choice(["full_prefix", "previous_token"]), default="full_prefix", show_default=True)
@click.option("--decay", type=float, default=0.3, show_default=True, help="Share of each new example in the average.")
@click.option("--top-k", type=int, metavar="K", help="Only the K largest weights.")
@learner()
def btm(models: tuple[str, ...], output: Path | None, given: TaskOptions, **options: object) -> None:
    """Weigh MODELS, language models of one tokenizer, by how likely each one's domain is, given the text.

    \b
    paramsmith learn btm A B C --data text.jsonl -o btm.json
    paramsmith merge A B C --coefficients btm.json -o OUT
    """
    target = checked_output(output, given, *models)
    if options["prior"] != "uniform":
        check_learning(given)
    from paramsmith.merge.learn.btm import learn_btm
    from paramsmith.progress import bar

    tasks = (load_task(given, model) for model in models)
    with bar(not given.quiet, "experts") as progress:
        report = learn_btm(tasks, models, target, **options, force=given.force, progress=progress)  # type: ignore[arg-type]
    told = ", ".join(f"{weight:.4f}" for weight in report.weights)
    show_learned(report, target, f"weights {told}, from {report.blocks:,} examples", given.quiet)


def _limits(given: TaskOptions) -> dict[str, object]:
    return {"memory": given.memory, "device": device_name(given), "force": given.force}


def _function(options: dict[str, object]) -> str | None:
    said = str(options["evaluate"])
    return said if ".py:" in said and "{" not in said else None


def _evaluation(given: TaskOptions, options: dict[str, object]) -> Evaluate | None:
    """What to score by; its options are taken out. None where nothing is given, InvalidInput for two things."""
    said, metric = options.pop("evaluate"), options.pop("metric")
    if said is None and not given.data and not given.task:
        return None
    if said is not None:
        if given.data or given.task:
            raise InvalidInput("both --evaluate and data are given", "a model is scored by the one or the other")
        return str(said)
    check_learning(replace(given, memory=None))  # which bounds the merges
    from paramsmith.merge.learn.evaluation import TaskScore

    return TaskScore(lambda model: make_tasks(given, model, each=True), _identity(given), metric)  # type: ignore[arg-type]


def _identity(given: TaskOptions) -> str:
    """What tells these tasks from others: their options, and what the files hold."""
    said = {key: value for key, value in asdict(given).items() if key not in _NOT_DATA}
    files = [*given.data, *([given.task.rpartition(":")[0]] if given.task else [])]
    return json.dumps([said, [_held(Path(file)) for file in files]])


def _held(path: Path) -> object:
    """A digest of a file; of a folder, what its files are called and when they changed."""
    if path.is_dir():
        inside = ((each, each.stat()) for each in sorted(path.rglob("*")))
        return [[str(each.relative_to(path)), status.st_size, status.st_mtime_ns] for each, status in inside]
    if not path.is_file():
        raise InvalidInput(f"{printable(path, 400)}: does not exist", "check the name of the file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parameters(words: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE, ... as plain data. InvalidInput for anything else, and for a name given twice."""
    from paramsmith.params import parse_option

    found: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name or not value:
            raise InvalidInput(f"{printable(word)!r} is no parameter", "write it as --parameter density=0.2")
        if name in found:
            raise InvalidInput(f"the parameter {printable(name)} is given twice", "values a model: weight=0.3,0.5,0.2")
        found[name] = parse_option(value)
    return found
