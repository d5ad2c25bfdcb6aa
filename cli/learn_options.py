"""What the learners have in common: the models, the output, the tasks, and what is said at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import click

from paramsmith.errors import InvalidInput, printable

from .output import json_option, show_json, show_warning, wants_json
from .task_options import TaskOptions, check_apart, check_task_options, device_name, make_tasks, task_options

if TYPE_CHECKING:
    from paramsmith.merge.task import Task

Command: TypeAlias = Callable[..., None]

exclude_option = click.option("--exclude", multiple=True, metavar="FILTER", help="Tensors to leave alone.")
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads.")
base_option = click.option("--base", metavar="MODEL", help="The model the others were tuned from.")


class Learned(Protocol):
    """The report of any learner."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        ...

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        ...


def learner(*own: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """The models, the output, a learner's own options, and those of tasks."""

    def decorate(run: Command) -> Command:
        output = click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")
        models = click.argument("models", nargs=-1, required=True)
        options: list[Callable[[Command], Command]] = [models, output, *own, task_options, json_option]
        for option in reversed(options):
            run = option(run)
        return run

    return decorate


def checked_output(output: Path | None, given: TaskOptions, *inputs: str | None) -> Path:
    """The output; InvalidInput when there is none, or when it is one of the inputs."""
    if output is None:
        raise InvalidInput("no output given", "add -o FILE.json")
    check_apart(output, *inputs, *given.data, given.task)
    return output


def check_learning(given: TaskOptions) -> None:
    """InvalidInput, before anything is loaded, for options of tasks that a learner cannot follow."""
    check_task_options(given)
    device_name(given)
    if given.memory is not None:
        raise InvalidInput("the memory of a learner is that of its models", "leave out --memory; a smaller batch helps")
    if given.limit is not None and given.task:
        raise InvalidInput("--limit goes with --data", "let the task file give fewer examples")


def tasks_of(
    given: TaskOptions, references: Sequence[str], checkpoints: Sequence[str], *, labels: bool = True
) -> list[Task]:
    """The tasks of data files and of functions, `file.py:make_task`, each made for a checkpoint of its own or for one.

    InvalidInput when there are several checkpoints, and not as many references.
    """
    if len(checkpoints) > 1 and len(references) == 1 and ".py:" in references[0]:
        references = list(references) * len(checkpoints)
    if len(checkpoints) > 1 and len(references) != len(checkpoints):
        fact = f"{len(references)} tasks are given for the heads of {len(checkpoints)} models"
        raise InvalidInput(fact, "give --data once a model, in their order, or --heads base")
    own = list(checkpoints) if len(checkpoints) > 1 else list(checkpoints) * len(references)
    made: list[Task] = []
    for reference, checkpoint in zip(references, own, strict=True):
        is_function = ".py:" in reference
        one = replace(given, task=reference if is_function else None, data=() if is_function else (reference,))
        made += make_tasks(one, checkpoint, labels=labels)
    return made


def show_learned(report: Learned, output: Path, told: str, quiet: bool) -> None:
    """The report as JSON; or the warnings and one line."""
    if wants_json():
        return show_json(report.to_json())
    for warning in report.warnings:
        show_warning(warning)
    if not quiet:
        click.echo(f"{printable(output, 2000)}: {told}")
    return None
