"""The demo: five experts fine-tuned from one small network on real handwritten digits, merged by every method there is.

Settings are chosen on validation digits and told on test digits, which choose nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from paramsmith.errors import InvalidInput, ParamsmithError, Refused, printable
from paramsmith.registry import MergeMethod, methods

from .digits_table import Row, best, command, table

if TYPE_CHECKING:
    from .digits_net import Digits, Weights

Settings = dict[str, Any]  # a method's own parameters, as plain data

SHARD_SIZE = "500KB"
MARKER = ".paramsmith-demo"
MADE = ("base", "experts", "merged", "again")

# Methods of which several versions are rows of their own: the parameter that tells them apart.
VERSIONS: Mapping[str, str] = {"dare": "elect", "pcb": "variant", "ties": "flavour"}

# What is tried for a method: every combination, a quick run the first two. A method that is not here runs as it is.
TRIED: Mapping[str, Mapping[str, Sequence[object]]] = {
    "dare": {"lambda": (0.4, 0.3, 0.5), "density": (0.5, 0.8, 0.2)},
    "karcher": {"weight": ([1, 1, 1, 3, 3], 1, [1, 1, 1, 2, 2])},
    "linear": {"weight": ([1, 1, 1, 3, 3], [1, 1, 1, 2, 2])},
    "pcb": {"lambda": (1.4, 1.0, 2.0), "ratio": (0.5, 0.2)},
    "slerp": {"t": (0.5, 0.3, 0.7, {"gradient": [0.3, 0.7]})},
    "task_arithmetic": {"lambda": (0.4, {"gradient": [0.4, 0.6]}, {"gradient": [0.6, 0.4]}, 0.3, 0.5)},
    "ties": {"lambda": (1.4, 1.0, 2.0), "density": (0.5, 0.2, 1.0)},
}


@dataclass(frozen=True)
class Outcome:
    """What the demo found."""

    rows: tuple[Row, ...]
    best: Row
    command: str
    failed: Mapping[str, str]  # method -> why it has no row
    seconds: float


@dataclass(frozen=True)
class Lab:
    """The models in memory and the digits they are judged on."""

    root: Path
    base: Weights
    experts: Mapping[str, Weights]
    validation: Sequence[Digits]
    test: Sequence[Digits]
    quick: bool


def run(out: Path, quick: bool, echo: Callable[[str], None], *, force: bool = False) -> Outcome:
    """Train, merge by every method, tell which did best; leave the base, the experts and the merged models in `out`.

    `quick` trains for less long and tries fewer settings. An existing `out` is Refused; `force` replaces what an
    earlier demo left there.
    """
    started = time.perf_counter()
    _check_room(out, force)
    lab = _prepare(out, quick, echo)
    echo(f"merging the {len(lab.experts)} experts by every method, each in the best of the settings tried ...")
    merged, failed = list[Row](), dict[str, str]()
    for name, method, fixed in _versions(data_free(methods())):
        try:
            merged.append(_merged(lab, name, method, fixed))
        except ParamsmithError as problem:  # a plug-in may need what the demo does not have
            failed[name] = problem.fact
    if not merged:
        raise InvalidInput("no merge method could merge the demo's experts", next(iter(failed.values()), ""))
    merged.sort(key=lambda row: -row.validation)
    rows = (*_unmerged(lab), *merged)
    line = command(best(rows), out, out / "again", SHARD_SIZE)
    outcome = Outcome(rows, best(rows), line, failed, time.perf_counter() - started)
    _tell(outcome, lab, echo)
    return outcome


def data_free(known: Mapping[str, MergeMethod]) -> dict[str, MergeMethod]:
    """The methods that need nothing but models: statistics and learned factors are the examples' subject."""
    return {name: method for name, method in known.items() if method.statistics is None and name != "atlas"}


def _check_room(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"{printable(out)} is not a folder", "give another --output")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise Refused(f"{printable(out)} exists", "give another --output, or --force to replace an earlier demo")
    if not (out / MARKER).is_file():
        raise Refused(f"{printable(out)} was not made by the demo", "--force replaces a demo's output only")


def _make_room(out: Path) -> None:
    try:
        for name in MADE:
            if (out / name).exists():
                shutil.rmtree(out / name)
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).touch()
        (out / "merged").mkdir()
    except OSError as problem:
        raise InvalidInput(f"{printable(out)}: {problem.strerror}", "give another --output") from None


def _prepare(out: Path, quick: bool, echo: Callable[[str], None]) -> Lab:
    from . import digits_net as net

    splits = net.load_splits()  # before anything is written: scikit-learn may be missing
    _make_room(out)
    schedule = net.QUICK if quick else net.Schedule()
    started = time.perf_counter()
    base = net.train_base(splits.train, schedule)
    experts = {task: net.train_expert(base, task, splits.train, schedule) for task in net.TASKS}
    net.save_folder(base, out / "base")
    for task, weights in experts.items():
        net.save_folder(weights, out / "experts" / task)
    seconds, count = time.perf_counter() - started, sum(tensor.numel() for tensor in base.values())
    echo(f"trained a base and {len(experts)} experts of {count:,} parameters in {seconds:.1f} s")
    return Lab(out, base, experts, net.exams(splits.validation), net.exams(splits.test), quick)


def _unmerged(lab: Lab) -> Iterator[Row]:
    yield _row(lab, "base", lab.root / "base")
    for task in lab.experts:
        yield _row(lab, f"expert {task}", lab.root / "experts" / task)


def _versions(known: Mapping[str, MergeMethod]) -> Iterator[tuple[str, MergeMethod, Settings]]:
    """Every row to come: its name, its method and the parameters that make it this version."""
    yield "average", known["linear"], {"weight": 1.0}
    for name, method in known.items():
        parameter = VERSIONS.get(name, "")
        if parameter not in method.params.model_fields:
            yield name, method, {}
            continue
        field = method.params.model_fields[parameter]
        for value in get_args(field.annotation) or (False, True):
            usual = value == field.default
            shown = parameter if value is True else str(value)
            yield name if usual else f"{name} {shown}", method, {} if usual else {parameter: value}


def _merged(lab: Lab, name: str, method: MergeMethod, fixed: Settings) -> Row:
    """One row: the settings that are best on validation, their merge written to a folder and judged from there."""
    from paramsmith.merge import merge

    of = list(lab.experts)[: method.models[1]]
    settings = _chosen(lab, method, fixed, of)
    folder = lab.root / "merged" / name.replace(" ", "-")
    base = None if method.base == "unused" else lab.root / "base"
    paths: list[str | Path] = [lab.root / "experts" / task for task in of]
    # The budget counts this whole process, in which a training has just left its memory.
    merge(paths, folder, base=base, method=method.name, shard_size=SHARD_SIZE, memory="2GB", **settings)
    return _row(lab, name, folder, method.name, settings, of, base is not None)


def _chosen(lab: Lab, method: MergeMethod, fixed: Settings, of: Sequence[str]) -> Settings:
    from paramsmith.merge import merge_state_dicts

    from .digits_net import accuracies

    tried = {key: values for key, values in TRIED.get(method.name, {}).items() if key not in fixed}
    combinations: list[Settings] = [
        {**fixed, **dict(zip(tried, values, strict=True))} for values in product(*tried.values())
    ]
    if len(combinations) == 1:
        return combinations[0]
    base = None if method.base == "unused" else lab.base
    models = [lab.experts[task] for task in of]

    def score(settings: Settings) -> float:
        weights = merge_state_dicts(models, base=base, method=method.name, **settings)
        return sum(accuracies(weights, lab.validation))

    return max(combinations[:2] if lab.quick else combinations, key=score)  # the first of equals


def _row(
    lab: Lab,
    name: str,
    folder: Path,
    method: str = "",
    settings: Settings | None = None,
    of: Sequence[str] = (),
    base: bool = False,
) -> Row:
    from .digits_net import accuracies, load_folder

    weights = load_folder(folder)
    tests, validations = accuracies(weights, lab.test), accuracies(weights, lab.validation)
    return Row(name, folder, tests, validations, method, settings or {}, of, base)


def _tell(outcome: Outcome, lab: Lab, echo: Callable[[str], None]) -> None:
    echo("")
    for line in table(outcome.rows, list(lab.experts), len(lab.experts)):
        echo(line)
    echo("")
    echo("  accuracy in per cent on test digits; settings and the best row (*) were chosen on validation digits")
    for name, why in outcome.failed.items():
        echo(f"  no row for {name}: {why}")
    echo(f"  models: {lab.root}/base, {lab.root}/experts/*, {lab.root}/merged/*")
    echo("")
    echo("the best row again, from the command line:")
    echo(f"  {outcome.command}")
    echo(f"total: {outcome.seconds:.1f} s")
