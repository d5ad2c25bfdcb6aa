"""Print tables row by row as they are measured, and keep the rows as plain data."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

Value = str | float | int | bool | None
Row = dict[str, Value]
Kind = Literal["name", "text", "seconds", "ratio", "share", "times", "megabytes", "micro", "target"]

NAME = 36  # characters of the first column


@dataclass(frozen=True)
class Column:
    """A column: the key of its values, its heading, and what the values are."""

    key: str
    heading: str
    kind: Kind = "text"

    @property
    def width(self) -> int:
        """Characters."""
        return NAME if self.kind == "name" else max(8, len(self.heading))

    def cell(self, value: Value) -> str:
        """A value as it is printed."""
        text = _written(value, self.kind)
        return f"{text:{self.width}}" if self.kind == "name" else f"{text:>{self.width}}"


LOAD = Column("load", "load", "times")
WITHIN = Column("within", "within")


class Table:
    """One part of the report; every row ends with the load average, so that a disturbed one can be told."""

    def __init__(self, part: str, title: str, columns: Sequence[Column]) -> None:
        self.part, self.title = part, title
        self.columns = [*columns, LOAD]
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.failed = False
        print(f"\n{part}: {title}\n")
        print("  ".join(Column(c.key, c.heading, c.kind).cell(c.heading) for c in self.columns))
        print("  ".join("-" * c.width for c in self.columns), flush=True)

    def add(self, **values: Value) -> None:
        """Print and keep a row."""
        row: Row = {**values, "load": round(os.getloadavg()[0], 2)}
        self.rows.append(row)
        print("  ".join(c.cell(row.get(c.key)) for c in self.columns), flush=True)

    def note(self, text: str) -> None:
        """Print and keep a remark."""
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def fail(self, what: str, why: object) -> None:
        """Print and keep a failure; the run as a whole then fails too."""
        self.failed = True
        self.note(f"{what} FAILED: {why}")

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {"part": self.part, "title": self.title, "rows": self.rows, "notes": self.notes, "failed": self.failed}


def within(value: float | None, target: float | None) -> bool | None:
    """Whether a target is met; None where there is nothing to hold against it."""
    return None if value is None or target is None else value <= target


def _written(value: Value, kind: Kind) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, str):
        return value
    if kind == "seconds":
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
    if kind == "megabytes":
        return f"{value / 1e6:,.0f} MB"
    if kind == "share":
        return f"{value:.1%}"
    if kind in ("target", "micro"):
        return f"{value:.4g}"
    return f"{value:.2f}"


def machine(torch_version: str, gpu: str | None) -> Row:
    """The machine and what runs on it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "available": int((_first("/proc/meminfo", "MemAvailable") or "0 kB").split()[0]) * 1024,
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch_version,
        "paramsmith": version("paramsmith"),
        "load": round(os.getloadavg()[0], 2),
    }


def show_machine(about: Row) -> None:
    """The header."""
    memory, available = (float(about[key] or 0) / 1e9 for key in ("memory", "available"))
    print(f"{about['processor']}, {about['cores']} cores, {memory:.1f} GB memory, {available:.1f} of them available")
    print(f"{about['system']}, paramsmith {about['paramsmith']}, torch {about['torch']}, Python {about['python']}")
    print(f"GPU {about['gpu'] or 'none'}, {about['date']}, load average {about['load']}", flush=True)
    if float(about["load"] or 0) > 0.5:
        print("this machine is not quiet: trust ratios and seconds of processor more than seconds", file=sys.stderr)


def _first(path: str, key: str) -> str | None:
    """The value after `key:` in one of the system's lists."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
