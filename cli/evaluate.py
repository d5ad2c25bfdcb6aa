"""`paramsmith evaluate`: generators beside starts that need none, trained on and compared."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramsmith.disk import replace_file
from paramsmith.errors import GenerateWarning, InvalidInput, printable
from paramsmith.lineage import local_names

from .output import finite, json_option, show_json, show_table, told_warnings, wants_json
from .task_options import check_apart

if TYPE_CHECKING:
    from paramsmith.hypernet.evaluation.evaluate import Arm
    from paramsmith.hypernet.evaluation.results import Budget, Evaluation, Row
    from paramsmith.hypernet.protocols import Task
    from paramsmith.hypernet.zoos.zoo import Zoo


def _numbers(kind: Callable[[str], float]) -> Callable[[object, object, str | None], tuple[float, ...] | None]:
    def parsed(context: object, parameter: object, text: str | None) -> tuple[float, ...] | None:
        if text is None:
            return None
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{printable(text, 60)!r} is no list of numbers: 1,5,20") from None

    return parsed


@click.command("evaluate", short_help="Compare generated starts with fresh ones and with trained networks.")
@click.argument("generators", nargs=-1, metavar="[GENERATOR]...")
@click.option("--tasks", "reference", required=True, metavar="FILE.PY:FUNCTION", help="What the starts are for.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the numbers there, as JSON.")
@click.option("--report", type=click.Path(path_type=Path), help="Write all there as one page: .html.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curves there: .png or .svg.")
@click.option("--steps", "marks", callback=_numbers(int), metavar="0,1,5,20,100", help="Steps to show scores at.")
@click.option("--rates", callback=_numbers(float), metavar="0.001,0.01", help="Learning rates to choose from.")
@click.option("--threshold", type=float, help="A score to be reached; else what a random start ends with.")
@click.option("--targets", type=click.IntRange(1), help="Unseen targets, or conditions, to judge by.")
@click.option("--seeds", type=click.IntRange(1), help="Draws of every start.")
@click.option("--batch-size", type=click.IntRange(1), help="Examples a step.")
@click.option("--zoo", type=click.Path(path_type=Path), help="What they were trained on, to compare with.")
@click.option(
    "--networks", type=click.IntRange(0), help="Without a zoo: networks to train for the starts mean, nearest."
)
@click.option("--best-of", "best", type=click.IntRange(2, 10_000), metavar="K", help="Also the best of K samples.")
@click.option(
    "--mean-of", "mean", type=click.IntRange(2, 10_000), metavar="K", help="Also the mean of K: linear heads."
)
@click.option("--seed", type=click.IntRange(0), help="Of all draws.")
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on the way.")
@json_option
def command(
    generators: tuple[str, ...],
    reference: str,
    output: Path | None,
    report: Path | None,
    plot: Path | None,
    zoo: Path | None,
    best: int | None,
    mean: int | None,
    force: bool,
    quiet: bool,
    **given: object,
) -> None:
    """Train on from what each GENERATOR makes and from starts that need none, and print a table.

    The task's unseen targets and data are the judges; each start has the learning rate that suits it best. With --zoo,
    a generator is held against what can be computed from the networks it was trained on, and its samples against these.

    \b
    paramsmith evaluate GEN --tasks fives.py:five_digits --zoo ZOO --report report.html
    """
    from paramsmith.hypernet.evaluation.evaluate import evaluate
    from paramsmith.hypernet.training.tasks import load_task

    written = [path for path in (output, report, plot) if path is not None]
    for path in written:
        _check_absent(path, force)
        check_apart(path, reference, *generators, *(() if zoo is None else (str(zoo),)))
    _check_files(written, report, plot)
    budget = _budget(given)
    told = None if quiet or wants_json() else lambda name: click.echo(f"training on from: {printable(name)}", err=True)
    with told_warnings(GenerateWarning):
        task = load_task(reference)
        named = zip(generators, local_names(generators), strict=True)
        arms = [arm for name, shown in named for arm in _arms(name, shown, task, budget, best, mean)]
        found = evaluate(task, arms, budget, told, None if zoo is None else _zoo(zoo))
    _write(found, output, report, plot)
    if wants_json():
        return show_json(found.to_json())
    return _show(found)


def _budget(given: dict[str, object]) -> Budget:
    from paramsmith.hypernet.evaluation.results import Budget
    from paramsmith.params import validated

    wanted = {name: value for name, value in given.items() if value is not None}
    return validated(Budget, wanted, "the evaluation", "see: paramsmith evaluate --help")


def _zoo(folder: Path) -> Zoo:
    from paramsmith.hypernet.zoos.zoo import Zoo

    return Zoo.open(folder)


def _arms(name: str, shown: str, task: Task, budget: Budget, best: int | None, mean: int | None) -> list[Arm]:
    """The generator's start and what it cost, selections of its samples, and the controls of what it is asked."""
    from paramsmith.hypernet.evaluation.controls import controls_of
    from paramsmith.hypernet.evaluation.evaluate import Arm
    from paramsmith.hypernet.evaluation.generated import Generated, averaged, best_of, oracle_of
    from paramsmith.hypernet.generator import Generator

    generator = Generator.from_pretrained(name)
    start = Generated(generator.model, budget.seed)
    seen = getattr(generator.model, "encoded", None)
    arms = [Arm(shown, start, generator.seconds, True, seen=seen, learned_from=generator.learned_from)]
    for kind, of, k in (("best", best_of, best), ("mean", averaged, mean)):
        if k is not None:
            arms.append(
                Arm(f"{shown}, {kind} of {k}", of(start, task, k), generator.seconds, generated=True, seen=seen)
            )
    if best is not None:
        bound = oracle_of(start, task, best)
        arms.append(Arm(f"{shown}, {best} chosen by what is reported", bound, None, of=f"{shown}, best of {best}"))
    asked = controls_of(generator.model, start, task, budget.seed)
    return [*arms, *(Arm(f"{shown}, {kind}", other, None, of=shown) for kind, other in asked.items())]


def _check_absent(path: Path, force: bool) -> None:
    """A name that is free, or of an ordinary file or a link that may be replaced: never of a device or a pipe."""
    shown = printable(path, 400)
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError:  # too long, links in a circle
        raise InvalidInput(f"{shown}: is no name for a file", "choose another name") from None
    if mode is not None and not force:
        raise InvalidInput(f"{shown}: exists already", "choose another name, or --force")
    if path.is_dir():
        raise InvalidInput(f"{shown}: is a folder, and one file is written", "choose another name")
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InvalidInput(f"{shown}: is no ordinary file, and is not replaced", "choose another name")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"{printable(path.absolute().parent, 400)} is not an existing folder", "create it first")


def _check_files(written: list[Path], report: Path | None, plot: Path | None) -> None:
    """Names that go together, and kinds that can be written."""
    if len({os.path.realpath(path) for path in written}) < len(written):
        raise InvalidInput(f"{printable(written[0], 400)}: two things go to the same file", "name two")
    if report is not None and report.suffix != ".html":
        raise InvalidInput(
            f"{printable(report.name, 100)}: a report is an .html page", "name it so, or use -o or --plot"
        )
    if plot is not None:
        from paramsmith.hypernet.evaluation.figure import check_format

        check_format(plot.suffix)


def _write(found: Evaluation, output: Path | None, report: Path | None, plot: Path | None) -> None:
    if output is not None:
        replace_file(output, (json.dumps(finite(found.to_json()), indent=2, allow_nan=False) + "\n").encode())
    if plot is not None:
        from paramsmith.hypernet.evaluation.figure import figure

        replace_file(plot, figure(found, plot.suffix))
    if report is not None:
        from paramsmith.hypernet.evaluation.page import page

        replace_file(report, page(found))


def _show(found: Evaluation) -> None:
    for sentence in found.verdicts():
        click.echo(sentence)
    marks = [str(mark) for mark in found.budget.marks]
    columns = ["start", *marks, "best", f"to {found.threshold:.3g}", "rate", "diversity", "cost"]
    show_table(columns, [_cells(row, found) for row in found.rows], right=columns[1:])
    targets = found.budget.targets if found.zoo is None else found.zoo["judged by"]
    last = f"{targets} targets, {found.budget.seeds} seeds"
    click.echo(f"scores after so many steps of Adam, on unseen data, mean of {last}; cost: seconds to make the start")
    for name, copied in found.copying.items():
        new = copied.novelty
        beside = "" if new.held_out is None else f", of held-out networks {new.held_out:.2f}"
        click.echo(f"{name}: {new.copies:.0%} copies, d1/d2 {new.ratio:.2f}, distance {new.distance:.2f}{beside}")
    for name, why in (found.left_out or {}).items():
        click.echo(f"{name} is left out: {why}")


def _cells(row: Row, found: Evaluation) -> list[str]:
    steps = "never" if row.steps is None else f"{row.steps:.0f}"
    spread = "" if row.diversity is None else f"{row.diversity:.2f}"
    cost = "?" if row.seconds is None else f"{row.seconds:.0f} s"
    scores = [f"{row.at(mark):.3f}" for mark in found.budget.marks]
    return [row.name, *scores, f"{row.best:.3f}", steps, f"{row.rate:g}", spread, cost]
