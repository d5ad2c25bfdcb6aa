"""One progress bar, in bytes or examples, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]  # (done, in all)


@contextmanager
def bar(enabled: bool = True, unit: str = "bytes") -> Iterator[Progress]:
    """A callback `(done, in all)`, 0 in all where that is not known; draws only when stderr is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich import progress as parts
    from rich.console import Console

    counts: list[parts.ProgressColumn] = [parts.DownloadColumn(), parts.TransferSpeedColumn()]
    if unit != "bytes":
        counts = [parts.MofNCompleteColumn(), parts.TextColumn(unit)]
    columns = (parts.BarColumn(None), *counts, parts.TimeRemainingColumn())
    with parts.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def part_of(progress: Progress | None, before: int, total: int | None = None) -> Progress | None:
    """The callback of a piece of work that comes after `before` bytes of other work; `total` of all, where known."""
    if progress is None:
        return None
    return lambda done, own: progress(before + done, before + own if total is None else total)
