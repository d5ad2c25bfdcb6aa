"""`paramsmith diff A B`: what changed between two checkpoints, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

import click

from paramsmith.checkpoint import Checkpoint
from paramsmith.compare import Sums, TensorDiff, by_module, compare

from .output import json_option, show_json, show_table, show_warning, wants_json

MEASURES = ("change", "cosine", "same sign", "largest")


@click.command("diff", short_help="Compare two checkpoints, tensor by tensor.")
@click.argument("a")
@click.argument("b")
@click.option("--stat", is_flag=True, help="A line for each kind of module instead of each tensor.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when they differ.")
@json_option
def command(a: str, b: str, stat: bool, exit_code: bool) -> None:
    """Compare checkpoints A and B, tensor by tensor.

    change is ||b - a|| / ||a||, cosine that of the angle between them, same sign the share of entries whose signs
    agree, largest the greatest |b - a|.
    """
    with Checkpoint.open(a) as left, Checkpoint.open(b) as right:
        for warning in [*left.warnings, *right.warnings]:
            show_warning(warning)
        diffs = list(compare(left, right))
    if wants_json():
        show_json(_document(a, b, diffs, stat))
    elif stat:
        _show_stat(diffs)
    else:
        _show_tensors(diffs)
    if exit_code and not all(diff.same for diff in diffs):
        click.get_current_context().exit(1)


def _document(a: str, b: str, diffs: Sequence[TensorDiff], stat: bool) -> dict[str, object]:
    document: dict[str, object] = {"a": a, "b": b, "identical": all(diff.same for diff in diffs)}
    document["overall"] = _numbers(_overall(diffs))
    document["counts"] = _counts(diffs)
    if stat:
        groups = by_module(diffs).items()
        document["modules"] = [{"module": m, "tensors": n, "changed": c, **_numbers(s)} for m, (n, c, s) in groups]
    else:
        document["tensors"] = [_tensor(diff) for diff in diffs]
    return document


def _tensor(diff: TensorDiff) -> dict[str, object]:
    told: dict[str, object] = {"name": diff.name, "status": diff.status}
    for side, info in (("a", diff.a), ("b", diff.b)):
        told[side] = None if info is None else {"dtype": info.dtype.code, "shape": list(info.shape)}
    return told | (_numbers(diff.sums) if _measured(diff) else {})


def _numbers(sums: Sums) -> dict[str, object]:
    return {
        "change": sums.change,
        "cosine": sums.cosine,
        "sign_agreement": sums.agreement,
        "largest": sums.largest,
        "nonfinite": sums.nonfinite,
    }


def _measured(diff: TensorDiff) -> bool:
    return diff.sums.count + diff.sums.nonfinite > 0


def _overall(diffs: Sequence[TensorDiff]) -> Sums:
    total = Sums()
    for diff in diffs:
        total.add(diff.sums)
    return total


def _counts(diffs: Sequence[TensorDiff]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for diff in diffs:
        counts[diff.status] = counts.get(diff.status, 0) + 1
    return counts


def _cells(sums: Sums) -> list[str]:
    cells = [f"{sums.change:.3e}", f"{sums.cosine:.6f}", f"{sums.agreement:.4f}", f"{sums.largest:.3e}"]
    return cells if sums.count else [""] * len(cells)


def _show_tensors(diffs: Sequence[TensorDiff]) -> None:
    rows = []
    for diff in diffs:
        cells = _cells(diff.sums) if _measured(diff) and not diff.same else [""] * len(MEASURES)
        rows.append([diff.name, _status(diff), *cells])
    rows.append(["overall", _summary(diffs), *_cells(_overall(diffs))])
    show_table(("name", "status", *MEASURES), rows, MEASURES)


def _status(diff: TensorDiff) -> str:
    if diff.a and diff.b and diff.status == "shape":
        return f"shape {list(diff.a.shape)} and {list(diff.b.shape)}"
    if diff.a and diff.b and diff.status == "dtype":
        return f"dtype {diff.a.dtype.code} and {diff.b.dtype.code}"
    return diff.status + (f", {diff.sums.nonfinite:,} not finite" if diff.sums.nonfinite else "")


def _summary(diffs: Sequence[TensorDiff]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(_counts(diffs).items())) or "no tensors"


def _show_stat(diffs: Sequence[TensorDiff]) -> None:
    rows = [[module, n, changed, *_cells(sums)] for module, (n, changed, sums) in by_module(diffs).items()]
    rows.append(["overall", len(diffs), sum(not diff.same for diff in diffs), *_cells(_overall(diffs))])
    show_table(("module", "tensors", "changed", *MEASURES), rows, ("tensors", "changed", *MEASURES))
