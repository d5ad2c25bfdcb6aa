"""What training tells while it runs: lines of JSON beside what it makes, and one tracker of the user's."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from paramsmith.errors import InvalidInput, printable

if TYPE_CHECKING:
    from accelerate import Accelerator

Line: TypeAlias = Mapping[str, float]
Log: TypeAlias = Callable[[Line], None]
FILE = "metrics.jsonl"


class Metrics:
    """All lines so far, in memory and in a file; floats are written so that they read back exactly.

    A line depends on the steps alone, not on time: an interrupted run leaves the same file as one that was not.
    """

    def __init__(self, path: Path | None = None, text: str = "") -> None:
        self._lines = [text] if text else []
        self._path = path
        if path is not None:
            path.write_text(text, encoding="utf-8")  # lines that came after the state was saved are told again

    @property
    def text(self) -> str:
        """The file's content."""
        return "".join(self._lines)

    def add(self, line: Line) -> None:
        """One more line; numbers that JSON does not know become null."""
        told = {name: value if math.isfinite(value) else None for name, value in line.items()}
        text = json.dumps(told, allow_nan=False) + "\n"
        self._lines.append(text)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)


@contextmanager
def tracking(accelerator: Accelerator, told: Mapping[str, object]) -> Iterator[Log]:
    """The accelerator's trackers, told of the settings now and of each line then; nothing where there are none."""
    if not accelerator.log_with:
        yield lambda line: None
        return
    plain = {name: value for name, value in told.items() if isinstance(value, int | float | str | bool)}
    accelerator.init_trackers("paramsmith", config=plain)

    def log(line: Line) -> None:
        accelerator.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))

    try:
        yield log
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def check_tracker(name: str | None) -> None:
    """InvalidInput for a tracker that there is none of, or whose package is not installed."""
    if name is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some trackers' packages warn when they are looked at
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, LoggerType, get_available_trackers

        installed = [str(tracker) for tracker in get_available_trackers()]
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise InvalidInput(f"no tracker is called {printable(name)!r}", f"accelerate knows {known}")
    # one that a program registered itself is there
    if name in LoggerType.list() and name not in installed:
        raise InvalidInput(f"the tracker {name} is not installed", f"pip install {name}")
