"""`paramsmith measure fisher|gram|moments MODEL`: statistics of a model on data, as a file to merge with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .measure_sequential import sequential
from .output import json_option, show_json, show_warning, wants_json
from .task_options import (
    TaskOptions,
    check_apart,
    check_task_options,
    device_name,
    load_task,
    memory_bytes,
    task_options,
)

if TYPE_CHECKING:
    from paramsmith.merge.measure import Report

ESTIMATORS = ("exact", "sampled", "empirical")


@click.group("measure", invoke_without_command=True, short_help="Measure statistics of a model on data, to merge with.")
@click.pass_context
def command(context: click.Context) -> None:
    """Run a model on data and write what a merge can use: a small file that goes with the model.

    \b
    paramsmith measure fisher MODEL --data reviews.jsonl -o fisher.safetensors
    paramsmith measure gram MODEL --task mine.py:make_task -o gram.safetensors
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


command.add_command(sequential)


def _measuring(run: Callable[..., None]) -> Callable[..., None]:
    """What the three have in common: the model, the output, which tensors, the task and its data."""
    wanted = task_options(json_option(run))
    wanted = click.option("--include", metavar="FILTER", help="Only tensors whose name matches, as in recipes.")(wanted)
    wanted = click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")(wanted)
    return click.argument("model")(wanted)


@command.command("fisher", short_help="The diagonal of the Fisher information.")
@click.option("--estimator", type=click.Choice(ESTIMATORS), default="exact", show_default=True)
@click.option("--draws", type=click.IntRange(1, 1000), default=1, show_default=True, help="Labels drawn for `sampled`.")
@_measuring
def fisher(model: str, output: Path | None, include: str | None, given: TaskOptions, **how: object) -> None:
    """Measure the diagonal of the Fisher information of MODEL, the mean over the examples.

    exact: every class, weighted by its probability; sampled: labels drawn from the model; empirical: the labels of the
    data, which is another quantity. Only empirical needs labels.
    """
    _measure("fisher", model, output, include, given, **how)


@command.command("gram", short_help="Gram matrices of what each weight multiplies.")
@_measuring
def gram(model: str, output: Path | None, include: str | None, given: TaskOptions) -> None:
    """Measure the Gram matrices E[x xᵀ] of what the Linear and convolution weights of MODEL multiply; needs no labels.

    The method regmean merges with them.
    """
    _measure("gram", model, output, include, given)


@command.command("moments", short_help="Mean, variance and norm of what each weight multiplies.")
@_measuring
def moments(model: str, output: Path | None, include: str | None, given: TaskOptions) -> None:
    """Measure mean, variance and norm of what the Linear and convolution weights of MODEL multiply; needs no labels."""
    _measure("moments", model, output, include, given)


def _measure(
    kind: str, model: str, output: Path | None, include: str | None, given: TaskOptions, **how: object
) -> None:
    """Measure and say what was done; `how` are the options of one kind only."""
    _check(output, model, given)
    memory, device = memory_bytes(given), device_name(given)
    from paramsmith.checkpoint import Checkpoint
    from paramsmith.merge import measure
    from paramsmith.progress import bar

    labels = how.get("estimator") == "empirical"
    with Checkpoint.open(model) as checkpoint:
        task = load_task(given, model, labels=labels)
        with bar(not given.quiet, "examples") as progress:
            shared = {"limit": given.limit, "seed": given.seed, "memory": memory, "include": include, "device": device}
            run = getattr(measure, f"measure_{kind}")
            report = run(task, checkpoint, output, **shared, **how, force=given.force, progress=progress)
    _show(report, model, given.quiet)


def _check(output: Path | None, model: str, given: TaskOptions) -> None:
    """What is wrong with the words, before anything is loaded."""
    check_task_options(given)
    if output is None:
        raise InvalidInput("no output given", "add -o FILE.safetensors")
    if output.suffix != ".safetensors":
        raise InvalidInput(f"{printable(output, 400)}: statistics are a .safetensors file", "add -o FILE.safetensors")
    check_apart(output, model, *given.data, given.task)


def _show(report: Report, model: str, quiet: bool) -> None:
    if wants_json():
        told = {"output": str(report.output), "kind": report.kind, "model": model, "examples": report.examples}
        return show_json({**told, "seconds": report.seconds, "warnings": list(report.warnings)})
    for warning in report.warnings:
        show_warning(warning)
    if not quiet:
        what = f"{report.kind} of {printable(model, 400)} on {report.examples:,} examples in {report.seconds:.1f} s"
        click.echo(f"{printable(report.output, 2000)}: {what}")
    return None
