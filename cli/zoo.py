"""`paramsmith zoo`: build a zoo of trained networks, look at one, deal it out, bring its networks into one order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import GenerateWarning, InvalidInput, printable

from .output import json_option, show_json, show_table, show_warning, told_warnings, wants_json
from .task_options import check_apart

if TYPE_CHECKING:
    from paramsmith.hypernet.zoos.inspection import Inspection
    from paramsmith.hypernet.zoos.zoo import Zoo

_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1)
_SEED = click.IntRange(0, 2**63 - 1)
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
_force = click.option("--force", is_flag=True, help="Replace an existing output.")


@click.group("zoo", short_help="Build, inspect, split and align zoos of trained networks.")
def command() -> None:
    """Trained networks, and what is known of each, for a generator to learn from.

    A zoo is a folder of checkpoints, with `zoo.jsonl` saying what is known of them; or this list alone, of networks of
    the Hub: {"path": "hf://user/repo@revision"}.
    """


@command.command("build", short_help="Train many small networks for a task.")
@click.option("--tasks", metavar="FILE.PY:FUNCTION", help="What the networks are for, as of train; see the manual.")
@click.option("-n", "count", type=click.IntRange(1), default=600, show_default=True, help="How many networks.")
@click.option("-o", "--output", type=_PATH, help="The folder to write.")
@click.option("--init", type=click.Choice(["shared", "independent"]), help="One initialisation, or many.  [shared]")
@click.option("--steps", type=click.IntRange(0), help="Steps of Adam for each.  [400]")
@click.option("--lr", type=float, help="Learning rate, falling to 0.  [0.01]")
@click.option("--batch-size", type=click.IntRange(1), help="Rows that each network sees a step.  [64]")
@click.option("--test", type=click.IntRange(0), help="More networks, for unseen conditions, to judge by.  [0]")
@click.option("--seed", type=_SEED, help="Of all that is drawn.  [0]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or auto.")
@_force
@_quiet
@json_option
def build_command(
    tasks: str | None, count: int, output: Path | None, device: str, force: bool, quiet: bool, **building: object
) -> None:
    """Train a network for each of many draws from a task, all at once, and write them as stacked files.

    \b
    paramsmith zoo build --tasks digits.py:task -n 600 -o zoo
    paramsmith train flow --zoo zoo -o GEN
    """
    if output is None:
        raise InvalidInput("no output given", "add -o FOLDER")
    if tasks is None:
        raise InvalidInput("there is nothing to train for", "give --tasks file.py:function")
    check_apart(output, tasks)
    from paramsmith.hypernet.training.tasks import load_task
    from paramsmith.hypernet.zoos.build import build
    from paramsmith.progress import bar

    given = {name: value for name, value in building.items() if value is not None}
    with told_warnings(GenerateWarning), bar(not quiet, "steps") as progress:
        found = build(load_task(tasks), count, output, force=force, device=device, progress=progress, **given)
    if wants_json():
        return show_json(found.to_json())
    for warning in found.warnings:
        show_warning(warning)
    if not quiet:
        scores = ", ".join(f"{printable(name)} {value:.4g}" for name, value in found.metrics.items())
        click.echo(f"{printable(found.output, 2000)}: {found.networks:,} networks, {scores}, {found.seconds:.0f} s")
    return None


@command.command("inspect", short_help="Show what a zoo holds, and what is wrong with it.")
@click.argument("zoo", type=_PATH)
@json_option
def inspect_command(zoo: Path) -> None:
    """Read a whole zoo: its architectures, tasks, runs, splits and metrics; copies; whether networks are aligned."""
    from paramsmith.hypernet.zoos.inspection import inspect

    with told_warnings(GenerateWarning):
        found = inspect(_opened(zoo))
    if wants_json():
        return show_json(found.to_json())
    _show(found)
    return None


@command.command("split", short_help="Deal a zoo out to train on, to choose by and to judge by.")
@click.argument("zoo", type=_PATH)
@click.option("--validation", type=_SHARE, default=0.1, show_default=True, help="Share of tasks to choose by.")
@click.option("--test", type=_SHARE, default=0.2, show_default=True, help="Share of tasks to judge by.")
@click.option("--seed", type=_SEED, default=0, show_default=True, help="Of the order of tasks.")
@click.option("-q", "--quiet", is_flag=True, help="No closing line.")
@json_option
def split_command(zoo: Path, validation: float, test: float, seed: int, quiet: bool) -> None:
    """Write the splits of `zoo.jsonl` anew: whole tasks, or whole runs where the tasks are too few.

    A network of the Hub gets the commit that its revision means now.
    """
    from paramsmith.hypernet.zoos.splitting import save_index, split

    with told_warnings(GenerateWarning):
        made = split(_opened(zoo, quiet), {"validation": validation, "test": test}, seed)
    save_index(made)
    counts = {name: len(made.of(name)) for name in ("train", "validation", "test")}
    if wants_json():
        return show_json({"zoo": str(zoo), "splits": counts})
    if not quiet:
        click.echo(f"{printable(zoo, 2000)}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    return None


@command.command("align", short_help="Bring the networks of a zoo into one order of units.")
@click.argument("zoo", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="The folder to write.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Times that all are matched.")
@click.option("--seed", type=_SEED, default=0, show_default=True, help="Of the order in which layers are matched.")
@_force
@_quiet
@json_option
def align_command(zoo: Path, output: Path | None, rounds: int, seed: int, force: bool, quiet: bool) -> None:
    """Permute the hidden units of each network, until all agree; what they compute stays as it is."""
    if output is None:
        raise InvalidInput("no output given", "add -o FOLDER")
    check_apart(output, str(zoo))
    from paramsmith.hypernet.zoos.align import align

    with told_warnings(GenerateWarning):
        found = align(_opened(zoo, quiet), output, rounds=rounds, seed=seed, force=force)
    if wants_json():
        return show_json(found.to_json())
    if not quiet:
        told = "share an order already" if found.shared else f"explained by their mean: {_percent(1 - found.before)}"
        after = "" if found.shared else f" before, {_percent(1 - found.after)} now"
        click.echo(f"{printable(found.output, 2000)}: {found.networks:,} networks, {told}{after}")
    return None


def _opened(folder: Path, quiet: bool = False) -> Zoo:
    """The zoo, with what of it is on the Hub fetched."""
    from paramsmith.hypernet.zoos.zoo import Zoo
    from paramsmith.progress import bar

    with bar(not quiet) as progress:
        return Zoo.open(str(folder), progress=progress)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _show(found: Inspection) -> None:
    splits = ", ".join(f"{name} {count:,}" for name, count in found.splits.items())
    click.echo(f"{found.networks:,} networks, {found.tasks:,} tasks, {found.runs:,} runs; {splits}")
    asked = ", ".join(f"{printable(name)} {_shape(shape)}" for name, shape in found.condition.items())
    click.echo(f"condition: {asked or 'none'}")
    order = None if found.order is None else max(0.0, found.order)  # by chance it may be a little less
    click.echo(f"units in one order: {_percent(order) or 'not known'}\n")
    columns = ("architecture", "networks", "numbers", "tensors", "classes", "explained by the mean")
    rows = [
        (a.hash[:12], a.networks, a.numbers, a.tensors, a.classes or "", _percent(a.explained))
        for a in found.architectures
    ]
    show_table(columns, rows, columns[1:])
    if found.metrics:
        click.echo()
        told = [(name, *(f"{value:.4g}" for value in values)) for name, values in found.metrics.items()]
        show_table(("metric", "least", "mean", "largest"), told, ("least", "mean", "largest"))
    for warning in found.warnings:
        show_warning(warning)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) if size else "any" for size in shape)
