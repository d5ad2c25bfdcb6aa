"""What the demo prints: the table of accuracies and the command line that made the best row."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One model of the table and how it was made; accuracies are shares in [0, 1]."""

    name: str
    folder: Path
    tests: Sequence[float]  # one a task
    validations: Sequence[float]  # one a task
    method: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    of: Sequence[str] = ()  # the experts that were merged
    base: bool = False  # whether the merge was given the base

    @property
    def test(self) -> float:
        """The mean over the tasks, on digits that chose nothing."""
        return sum(self.tests) / len(self.tests)

    @property
    def validation(self) -> float:
        """The mean over the tasks that settings and methods are compared by."""
        return sum(self.validations) / len(self.validations)


def best(rows: Sequence[Row]) -> Row:
    """The merged model that is best on validation; the first of equals."""
    return max((row for row in rows if row.method), key=lambda row: row.validation)


def table(rows: Sequence[Row], tasks: Sequence[str], experts: int) -> list[str]:
    """The lines of the table; the best row is starred."""
    star = best(rows)
    wide = max(len(row.name) for row in rows) + 1
    columns = [*tasks, "mean", "validation"]
    lines = [f"  {'':{wide}}" + "".join(f"{c:>{_width(c)}}" for c in columns) + "  settings"]
    group = ""
    for row in rows:
        if row.method and not group:
            lines.append("  " + "-" * (len(lines[0]) - 2))
        group = row.method
        shares = [*row.tests, row.test, row.validation]
        cells = "".join(f"{100 * share:>{_width(c)}.1f}" for c, share in zip(columns, shares, strict=True))
        told = described(row.settings) + (f" of {' + '.join(row.of)}" if 0 < len(row.of) < experts else "")
        lines.append(f"{'*' if row is star else ' '} {row.name:{wide}}{cells}  {told.strip()}".rstrip())
    return lines


def _width(column: str) -> int:
    return max(len(column), 5) + 2


def described(settings: Mapping[str, object]) -> str:
    """Settings in one line.

    >>> described({"lambda": 0.4, "density": 0.2, "weight": [1, 2]})
    'lambda 0.4, density 0.2, weight 1,2'
    """
    return ", ".join(f"{name} {option(value)}" for name, value in settings.items())


def option(value: object) -> str:
    """A setting as the command line takes it.

    >>> option(0.5), option([0.3, 0.7]), option(True), option({"gradient": [0.2, 0.6]})
    ('0.5', '0.3,0.7', 'true', '0.2..0.6')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "..".join(option(anchor) for anchor in value["gradient"])
    if isinstance(value, list | tuple):
        return ",".join(option(one) for one in value)
    return str(value)


def command(row: Row, root: Path, output: Path, shard_size: str) -> str:
    """The shell line that makes this row's folder again."""
    words = ["paramsmith", "merge", *(str(root / "experts" / name) for name in row.of)]
    words += ["--output", str(output), "--method", row.method]
    if row.base:
        words += ["--base", str(root / "base")]
    for name, value in row.settings.items():
        words += [f"--{name.replace('_', '-')}", option(value)]
    return shlex.join([*words, "--shard-size", shard_size])
