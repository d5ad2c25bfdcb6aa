"""The options of every command that runs models on data: what the data is, how much of it, and where to work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, MergeWarning, printable

from .output import told_warnings

if TYPE_CHECKING:
    from paramsmith.merge.task import Task

KINDS = ("auto", "text-classification", "causal-lm", "masked-lm", "image-classification")


@dataclass(frozen=True)
class TaskOptions:
    """What was given on the command line; a command gets it as `given`."""

    data: tuple[str, ...]
    task: str | None
    text: tuple[str, ...]
    label: str | None
    kind: str
    max_length: int
    batch_size: int
    limit: int | None
    shuffle: bool
    seed: int
    memory: str | None
    device: str
    force: bool
    quiet: bool


def task_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a click command, which then takes `given: TaskOptions` beside its own parameters."""

    @functools.wraps(command)
    def wrapped(*args: object, **values: object) -> None:
        mine = {field.name: values.pop(field.name) for field in fields(TaskOptions)}
        command(*args, given=TaskOptions(**mine), **values)  # type: ignore[arg-type]

    for option in reversed(_OPTIONS):
        option(wrapped)
    return wrapped


def load_task(given: TaskOptions, checkpoint: str, *, labels: bool = True) -> Task:
    """The one task for a checkpoint: all the data together, or what the task file gives.

    Without `labels` the data need not have any. InvalidInput when the task file gives several tasks.
    """
    tasks = make_tasks(given, checkpoint, labels=labels)
    if len(tasks) > 1:
        raise InvalidInput(f"{printable(given.task)} gave {len(tasks)} tasks", "one task is wanted here: give one")
    return tasks[0]


def make_tasks(given: TaskOptions, checkpoint: str, *, labels: bool = True, each: bool = False) -> list[Task]:
    """The tasks for a checkpoint: those of the task file, or one of all the data, or one for `each` --data."""
    check_task_options(given)
    groups = [(file,) for file in given.data] if each else [given.data]
    with told_warnings(MergeWarning):
        if not given.task:
            return [_of_files(given, checkpoint, files, labels) for files in groups]
        from paramsmith.merge.task import load_tasks

        return load_tasks(given.task, checkpoint)


def check_task_options(given: TaskOptions) -> None:
    """InvalidInput, before anything is loaded, when data and task file are both given, or neither."""
    if bool(given.task) == bool(given.data):
        fact = "both --data and --task are given" if given.task else "no data given"
        raise InvalidInput(fact, "give --data FILE for a transformers model, or --task file.py:make_task for any other")


def check_apart(output: Path, *inputs: str | None) -> None:
    """InvalidInput for an output that is one of the inputs or in its folder; functions are `file.py:name`."""
    for given in filter(None, inputs):
        path = Path(given.rpartition(":")[0] if ".py:" in given else given)
        try:
            whole = output.resolve()
            same = path.resolve() == whole or (path.is_file() and output.exists() and path.samefile(output))
            inside = path.is_dir() and path.resolve() in whole.parents
        except (OSError, ValueError, RuntimeError):
            continue  # what is wrong with it is said when it is opened
        if same:
            raise InvalidInput(f"the output {printable(output, 400)} is an input", "write it elsewhere")
        if inside:
            fact = f"the output {printable(output, 400)} lies in the input {printable(path, 400)}"
            raise InvalidInput(fact, "write it elsewhere")


def memory_bytes(given: TaskOptions) -> int | None:
    """The memory budget in bytes; None where none was given."""
    from paramsmith.device import parse_bytes

    return None if given.memory is None else parse_bytes(given.memory)


def device_name(given: TaskOptions) -> str:
    """The device to work on, with `auto` resolved."""
    from paramsmith.device import pick_device

    return str(pick_device(given.device))


def _of_files(given: TaskOptions, checkpoint: str, files: tuple[str, ...], labels: bool) -> Task:
    from paramsmith.merge.pretrained.task import transformers_task

    return transformers_task(
        checkpoint,
        files,
        kind=given.kind,  # type: ignore[arg-type]  # one of KINDS
        text_column=given.text or None,
        label_column=given.label,
        max_length=given.max_length,
        batch_size=given.batch_size,
        limit=given.limit,
        shuffle=given.shuffle,
        seed=given.seed,
        device=device_name(given),
        labels=labels,
    )


_COUNT = click.IntRange(min=1)
_OPTIONS = (
    click.option("--data", multiple=True, metavar="FILE", help="jsonl, csv, tsv, parquet, txt, a folder of images."),
    click.option("--task", metavar="FILE.py:FUNCTION", help="Your own model and data instead; see the manual."),
    click.option("--text", multiple=True, metavar="COLUMN", help="Column of the text; twice for pairs.  [text]"),
    click.option("--label", metavar="COLUMN", help="Column of the label.  [label]"),
    click.option("--kind", type=click.Choice(KINDS), default="auto", show_default=True, help="What the model is."),
    click.option("--max-length", type=_COUNT, default=128, show_default=True, help="Most tokens of an example."),
    click.option("--batch-size", type=_COUNT, default=16, show_default=True, help="Examples of a batch."),
    click.option("--limit", type=_COUNT, help="Use so many examples, the first ones."),
    click.option("--shuffle", is_flag=True, help="Put the examples in an order drawn from the seed first."),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of all that is drawn."
    ),
    click.option("--memory", metavar="SIZE", help="Most memory the run may hold: 2GB."),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto."),
    click.option("--force", is_flag=True, help="Replace an existing output."),
    click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line."),
)
