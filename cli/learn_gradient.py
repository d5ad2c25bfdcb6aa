"""`paramsmith learn atlas` and `adamerging`: coefficients by gradient descent on the loss of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput

from .learn_options import (
    base_option,
    check_learning,
    checked_output,
    exclude_option,
    learner,
    show_learned,
    tasks_of,
    threads_option,
)
from .task_options import TaskOptions, device_name

if TYPE_CHECKING:
    from paramsmith.merge.learn import Report
    from paramsmith.merge.task import Task

PRESETS = ("addition", "negation", "few-shot", "adapt")
OBJECTIVES = ("supervised", "negation", "entropy", "ufm")
UNLABELLED = {"adapt", "entropy", "ufm"}
REFERENCE = "FILE | FILE.py:FUNCTION"
_POSITIVE = click.FloatRange(0, min_open=True)
_COUNT = click.IntRange(1)


_HEADS = "Whose tensors a task has where none are learned: the base's, or the i-th task the i-th model's."
_descending = learner(
    base_option,
    click.option("--heads", type=click.Choice(["base", "models"]), default="base", show_default=True, help=_HEADS),
    click.option("--validation", multiple=True, metavar=REFERENCE, help="What to choose the best epoch by."),
    click.option("--reference", multiple=True, type=float, help="Score to divide each validation score by."),
    exclude_option,
    threads_option,
)


@click.command("atlas", short_help="One coefficient for each task vector and tensor.")
@click.option("--preset", type=click.Choice(PRESETS), help="Settings of the authors for a purpose.  [addition]")
@click.option("--objective", type=click.Choice(OBJECTIVES), help="What is minimised; the preset's unless told.")
@click.option("--control", metavar=REFERENCE, help="negation: what must not be forgotten.")
@click.option("--partitions", type=_COUNT, default=1, show_default=True, help="Coefficients a tensor.")
@click.option("--isotropic", is_flag=True, help="One coefficient a task vector.")
@click.option("--budget", type=_COUNT, metavar="B", help="Only the B steepest task vectors at each tensor.")
@click.option("--steps", type=_COUNT, help="Steps, instead of epochs.")
@click.option("--epochs", type=_COUNT, help="Epochs; the preset's unless told.")
@click.option("--lr", type=_POSITIVE, help="Learning rate; the preset's unless told.")
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="The preset's unless told.")
@click.option("--weight-decay", type=click.FloatRange(0), default=0.1, show_default=True)
@click.option("--clip", type=_POSITIVE, default=1.0, show_default=True, help="Largest norm of a gradient.")
@click.option("--penalty", type=_POSITIVE, help="Factor on the sum of the coefficients' magnitudes.")
@_descending
def atlas(
    models: tuple[str, ...],
    output: Path | None,
    given: TaskOptions,
    control: str | None,
    preset: str | None,
    objective: str | None,
    **options: object,
) -> None:
    """Learn a coefficient for the task vector of each of MODELS at each tensor, from 0, and write a file of them.

    Each --data is a task; a task file may give several. addition: labels of the tasks; few-shot: the same, from a
    handful of examples; negation: forget the tasks, but not the control; adapt: no labels, but pseudo-labels.

    \b
    paramsmith learn atlas A B C --base BASE --data a.jsonl --data b.jsonl -o atlas.json
    paramsmith merge A B C --base BASE --coefficients atlas.json -o OUT
    """
    how: dict[str, object] = {"preset": preset, "objective": objective, "seed": given.seed}
    labels = not {objective or preset} & UNLABELLED
    _learn("atlas", models, output, given, {**options, **how}, labels, control)


@click.command("adamerging", short_help="Coefficients that make unlabelled predictions certain.")
@click.option("--per", type=click.Choice(["layer", "task"]), default="layer", show_default=True)
@click.option("--plus-plus", is_flag=True, help="Trim the task vectors first, and keep what agrees in sign.")
@click.option("--steps", type=_COUNT, default=500, show_default=True)
@click.option("--lr", type=_POSITIVE, default=1e-3, show_default=True, help="Learning rate.")
@click.option("--init", type=float, default=0.3, show_default=True, help="Where every coefficient begins.")
@_descending
def adamerging(models: tuple[str, ...], output: Path | None, given: TaskOptions, **options: object) -> None:
    """Learn a coefficient for each of MODELS at each tensor that makes the predictions on unlabelled data certain.

    Each --data is a task; a task file may give several.

    \b
    paramsmith learn adamerging A B --base BASE --data a.txt --data b.txt --heads models -o ada.json
    paramsmith merge A B --base BASE --coefficients ada.json -o OUT
    """
    _learn("adamerging", models, output, given, options, False, None)


def _learn(
    name: str,
    models: Sequence[str],
    output: Path | None,
    given: TaskOptions,
    options: dict[str, object],
    labels: bool,
    control: str | None,
) -> None:
    check_learning(given)
    base = options.pop("base")
    target = checked_output(output, given, *models, control, None if base is None else str(base))
    if base is None:
        raise InvalidInput(f"{name} needs the base", "name the model the others were tuned from: --base")
    from paramsmith.checkpoint import Checkpoint
    from paramsmith.merge import learn
    from paramsmith.progress import bar

    heads, judged = options.pop("heads"), options.pop("validation")
    own = list(models) if heads == "models" else [str(base)]
    with ExitStack() as stack:
        opened = [stack.enter_context(Checkpoint.open(path)) for path in (str(base), *models)]
        tasks = tasks_of(given, given.data or (str(given.task),), own, labels=labels)
        if control is not None:
            options["control"] = _one(tasks_of(given, [control], [str(base)]), control)
        if isinstance(judged, tuple) and judged:
            options["validation"] = tasks_of(given, judged, own if len(judged) == len(own) else [str(base)])
        options["references"] = options.pop("reference") or None
        progress = stack.enter_context(bar(not given.quiet, "steps"))
        shared = {"device": device_name(given), "force": given.force, "progress": progress}
        report = getattr(learn, f"learn_{name}")(tasks, opened[0], opened[1:], target, **options, **shared)
    show_learned(report, target, _told(report, len(models)), given.quiet)


def _one(tasks: Sequence[Task], reference: str) -> Task:
    if len(tasks) != 1:
        raise InvalidInput(f"{reference} gave {len(tasks)} tasks for the control", "one is wanted here")
    return tasks[0]


def _told(report: Report, models: int) -> str:
    scores = ", ".join(f"{score:.4f}" for score in report.scores)
    told = f"coefficients of {models} model{'s' * (models != 1)} after {report.best_step} steps"
    return f"{told} in {report.seconds:.1f} s" + (f"; scores {scores}" if scores else "")
