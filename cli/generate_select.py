"""`paramsmith generate --select`: one of many samples, or several of them together, by data that a task gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import GenerateWarning, InvalidInput, printable

from .output import show_json, show_warning, size_text, told_warnings, wants_json

if TYPE_CHECKING:
    from paramsmith.hypernet.selection.choosing import Chosen, Plan
    from paramsmith.hypernet.selection.selecting import Selector
    from paramsmith.hypernet.writing.job import Request


@dataclass(frozen=True)
class SelectOptions:
    """What was given on the command line; the command gets it as `choice`."""

    select: Selector | None
    tasks: str | None
    k: int | None
    aligned: bool

    @property
    def given(self) -> list[tuple[str, object]]:
        """The options by name."""
        return [("--select", self.select), ("--tasks", self.tasks), ("-k", self.k), ("--aligned", self.aligned)]

    def check(self) -> None:
        """InvalidInput where they do not go together, before anything is loaded."""
        if self.select is None:
            alone = next((name for name, value in self.given if value), None)
            if alone is not None:
                raise InvalidInput(f"{alone} goes with --select", "say how: --select best_of, for example")
        elif self.tasks is None:
            raise InvalidInput("samples are selected by data, and none are given", "add --tasks FILE.PY:FUNCTION")


def select_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate the command, which then takes `choice: SelectOptions` beside its own parameters."""

    @functools.wraps(command)
    def wrapped(*args: object, **values: object) -> None:
        mine = {field.name: values.pop(field.name) for field in fields(SelectOptions)}
        command(*args, choice=SelectOptions(**mine), **values)  # type: ignore[arg-type]

    for option in reversed(_OPTIONS):
        option(wrapped)
    return wrapped


def plan_selection(generator: str, request: Request, choice: SelectOptions) -> Plan:
    """Hold everything against each other. The base of a request is what greedy_layers begins with."""
    from paramsmith.hypernet.selection.choosing import planned
    from paramsmith.hypernet.selection.selecting import Selecting

    if choice.select is None or choice.tasks is None:
        raise ValueError("there is nothing to select by")
    base = None
    if choice.select == "greedy_layers" and request.base is not None:
        base, request = str(request.base), replace(request, base=None)
    how = Selecting(choice.select, choice.k, choice.aligned, base)
    with told_warnings(GenerateWarning):
        return planned(generator, choice.tasks, request, how)


def run_selection(plan: Plan, output: Path, force: bool, quiet: bool) -> None:
    """Select, write, and say what was chosen and what it is worth."""
    from paramsmith.hypernet.selection.choosing import run
    from paramsmith.progress import bar

    with bar(not quiet, "candidates") as progress, told_warnings(GenerateWarning):
        found = run(plan, output, force=force, progress=progress)
    if wants_json():
        samples = [{**asdict(found.written), "path": str(found.written.path)}]
        told = {"samples": samples, "selected": found.to_json(), "seconds": found.seconds}
        return show_json({**told, "warnings": list(found.warnings)})
    for warning in found.warnings:
        show_warning(warning)
    if not quiet:
        click.echo(f"{printable(found.written.path, 2000)}: {size_text(found.written.nbytes)}")
        click.echo(f"{_chosen(found)}: {found.selected.score:.4g} on the {found.by:,} rows it was chosen by")
        click.echo(f"{found.report:.4g} on {found.rows:,} others, in {found.seconds:.1f} s")
    return None


def _chosen(found: Chosen) -> str:
    """What was made of which candidates."""
    selected = found.selected
    if selected.selector == "best_of":
        return f"best_of: sample {selected.kept} of {selected.k:,}"
    if selected.selector == "greedy_layers":
        replaced = sum(step.kept is not None for step in selected.steps)
        return f"greedy_layers: {replaced:,} of {len(selected.steps):,} layers replaced, {selected.before:.4g} before"
    if selected.selector == "bootstrap":
        return f"bootstrap: the best of {len(selected.scores):,} in {len(selected.steps):,} rounds"
    return f"{selected.selector}: {selected.k:,} samples"


_OPTIONS = (
    click.option(
        "--select",
        type=click.Choice(["best_of", "mean_of", "greedy_layers", "bootstrap"]),
        help="Write what does best of many samples, by the data of --tasks.",
    ),
    click.option("--tasks", metavar="FILE.PY:FUNCTION", help="With --select: the task that gives target and data."),
    click.option(
        "-k", "k", type=click.IntRange(1, 100_000), help="With --select: of how many samples.  [8; bootstrap: 50]"
    ),
    click.option("--aligned", is_flag=True, help="With mean_of: the networks share the order of their hidden units."),
)
