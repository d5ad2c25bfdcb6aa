"""The parts of the report that time whole processes: what starting takes, and mergekit on the same recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import runs
from tests.bench.child import Measured
from tests.bench.models import Unusable, tiny_models
from tests.bench.parts import THREE, Bench, row_of
from tests.bench.report import WITHIN, Column, Table, within
from tests.bench.runs import side_by_side

HELP, START, STARTS = 0.15, 1.0, 5  # seconds; seconds; how often
PEAK_SHARE = 1 / 8


@dataclass(frozen=True)
class MergekitRecipe:
    """A recipe in mergekit's terms, each model with the same parameters; `times` ours is what mergekit should take."""

    models: tuple[str, ...]
    parameters: str
    times: float


RECIPES = {
    "linear": MergekitRecipe(("base", *THREE), "{weight: 0.25}", 5),
    "task_arithmetic": MergekitRecipe(THREE, "{weight: 0.3}", 3),
    "dare_ties": MergekitRecipe(THREE, "{weight: 0.3, density: 0.5}", 12),
    "ties": MergekitRecipe(THREE, "{weight: 0.3, density: 0.2}", 20),
}
SLOW = ("ties",)  # mergekit takes minutes for it: run once


def startup(bench: Bench) -> Table:
    """What the command takes before and beside its work."""
    columns = [Column("case", "command", "name"), Column("seconds", "seconds", "seconds")]
    columns += [Column("against", "against"), Column("reference", "its", "seconds"), Column("more", "more", "seconds")]
    table = Table("startup", "whole processes", [*columns, Column("target", "target", "seconds"), WITHIN])
    times = min(bench.runs, STARTS) if bench.quick else STARTS
    models, out = tiny_models(bench.folder, 1), bench.scratch / "out"
    merging = ["merge", str(models["a"]), str(models["b"]), "-o", str(out), "--quiet"]
    with row_of(table, "startup"):
        helped, empty, merged, imported = side_by_side(
            [
                lambda: runs.whole_process([*runs.paramsmith(), "--help"]),
                lambda: runs.whole_process([sys.executable, "-c", "pass"]),
                lambda: runs.whole_process([*runs.paramsmith(), *merging], out),
                lambda: runs.whole_process([sys.executable, "-c", "import torch"]),
            ],
            times,
        )
        row = {"seconds": helped.seconds, "reference": empty.seconds, "more": helped.seconds - empty.seconds}
        table.add(case="paramsmith --help", against="pass", target=HELP, within=within(helped.seconds, HELP), **row)
        more = merged.seconds - imported.seconds
        row = {"seconds": merged.seconds, "reference": imported.seconds, "more": more}
        name, against = "paramsmith merge, 16 parameters", "import torch"
        table.add(case=name, against=against, target=START, within=within(more, START), **row)
        table.note("the target of --help is for its seconds, that of the merge for what it takes more")
    return table


def mergekit(bench: Bench) -> Table:
    """mergekit-yaml and paramsmith merge on the same recipe, from start to exit, both at their defaults."""
    columns = [Column("case", "recipe", "name"), Column("seconds", "seconds", "seconds")]
    columns += [Column("theirs", "mergekit", "seconds"), Column("ratio", "times", "times")]
    columns += [Column("target", "target", "target"), WITHIN, Column("peak", "peak RSS", "megabytes")]
    columns += [Column("their_peak", "mergekit's", "megabytes"), Column("share", "share", "share")]
    columns += [Column("share_target", "target", "share"), Column("share_within", "within")]
    table = Table("mergekit", f"whole processes on the same recipe; mergekit of {bench.mergekit}", columns)
    for name, recipe in RECIPES.items():
        with row_of(table, name):
            file = bench.scratch / f"{name}.yaml"
            file.write_text(recipe_text(bench, name), encoding="utf-8")
            once = bench.quick or name in SLOW
            uncounted = [] if bench.quick or bench.facts.no_compiler else [0]  # the first run may compile
            ours, theirs = side_by_side(_both(bench, file), 1 if once else min(2, bench.runs), uncounted)
            ratio, share = theirs.seconds / ours.seconds, (ours.peak or 0) / (theirs.peak or 1)
            target, most = bench.target(recipe.times), bench.target(PEAK_SHARE)
            table.add(
                case=name,
                seconds=ours.seconds,
                theirs=theirs.seconds,
                ratio=ratio,
                target=target,
                within=None if target is None else ratio >= target,
                peak=ours.peak,
                their_peak=theirs.peak,
                share=share,
                share_target=most,
                share_within=within(share, most),
            )
    return table


def _both(bench: Bench, recipe: Path) -> list[Callable[[], Measured]]:
    ours, theirs = bench.scratch / "out", bench.scratch / "mergekit"
    return [
        lambda: runs.whole_process([*runs.paramsmith(), "merge", recipe, "-o", ours], ours),
        lambda: runs.whole_process([*mergekit_command(bench.mergekit), recipe, theirs], theirs),
    ]


def mergekit_command(python: Path | None) -> list[str | Path]:
    """mergekit's merge as its users start it: plain defaults."""
    if python is None:
        raise Unusable("no Python with mergekit was named")
    installed = python.with_name("mergekit-yaml")
    return [installed] if installed.exists() else [python, "-m", "mergekit.scripts.run_yaml"]


def recipe_text(bench: Bench, name: str) -> str:
    """The recipe that both run."""
    recipe = RECIPES[name]
    base = "" if "base" in recipe.models else f"base_model: {bench.models['base']}\n"
    models = "".join(f"  - model: {bench.models[m]}\n    parameters: {recipe.parameters}\n" for m in recipe.models)
    return f"merge_method: {name}\n{base}dtype: bfloat16\nmodels:\n{models}"
