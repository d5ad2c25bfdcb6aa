"""`paramsmith measure sequential MODELS...`: the Gram matrices of RegMean++, a file for each model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from paramsmith.errors import InvalidInput, printable

from .output import json_option, show_json, show_warning, wants_json
from .task_options import TaskOptions, check_apart, check_task_options, device_name, load_task, task_options


@click.command("sequential", short_help="Gram matrices for RegMean++: of inputs that merged layers produce.")
@click.argument("models", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder for the files, one a model.")
@click.option("--weight", metavar="W,W,...", help="The weights of the merge, one a model.")
@click.option("--off-diagonal", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="That of the merge.")
@task_options
@json_option
def sequential(
    models: tuple[str, ...], output: Path | None, weight: str | None, off_diagonal: float, given: TaskOptions
) -> None:
    """Measure the Gram matrices of all MODELS together, layer by layer, each layer fed by those already merged.

    Give --data once a model, in their order; a task file is called with each of them. The method regmean, with the same
    weights and off-diagonal, merges with the files.

    \b
    paramsmith measure sequential A B --data a.jsonl --data b.jsonl -o grams
    paramsmith merge A B --method regmean --statistics grams/1-A.safetensors --statistics grams/2-B.safetensors -o OUT
    """
    shares = _checked(models, output, weight, given)
    device = device_name(given)
    from paramsmith.checkpoint import Checkpoint
    from paramsmith.merge.measure import measure_sequential_grams
    from paramsmith.progress import bar

    folder = output or Path()
    files = [folder / f"{i + 1}-{Path(model).resolve().stem}.safetensors" for i, model in enumerate(models)]
    with ExitStack() as stack:
        opened = [stack.enter_context(Checkpoint.open(model)) for model in models]
        each = [replace(given, data=(file,)) for file in given.data] or [given] * len(models)
        tasks = [load_task(one, model, labels=False) for one, model in zip(each, models, strict=True)]
        folder.mkdir(parents=True, exist_ok=True)
        progress = stack.enter_context(bar(not given.quiet, "layers"))
        how = {"limit": given.limit, "device": device, "force": given.force, "progress": progress}
        reports = measure_sequential_grams(
            tasks,
            opened,
            files,
            weight=shares,
            off_diagonal=off_diagonal,
            **how,  # type: ignore[arg-type]
        )
    if wants_json():
        show_json({"outputs": list(map(str, files)), "models": list(models), "seconds": reports[0].seconds})
        return
    for warning in dict.fromkeys(told for report in reports for told in report.warnings):
        show_warning(warning)
    if not given.quiet:
        click.echo("\n".join(printable(file, 2000) for file in files))


def _checked(
    models: tuple[str, ...], output: Path | None, weight: str | None, given: TaskOptions
) -> list[float] | None:
    """What is wrong with the words, before anything is loaded; the weights."""
    check_task_options(given)
    if output is None:
        raise InvalidInput("no output given", "add -o FOLDER")
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{printable(output, 400)} is not a folder", "the files, one a model, go into a folder")
    check_apart(output, *models, *given.data, given.task)
    if given.memory is not None:
        raise InvalidInput("--memory has no effect here", "all models are held at once: leave it out")
    if given.data and len(given.data) != len(models):
        raise InvalidInput(
            f"{len(given.data)} data files for {len(models)} models", "give --data once a model, in order"
        )
    if weight is None:
        return None
    try:
        return [float(word) for word in weight.split(",")]
    except ValueError:
        raise InvalidInput(
            f"--weight {printable(weight)}: not all of these are numbers", "write it as 0.3,0.7"
        ) from None
