"""The log of a search: every trial on a line of JSON, on the disk before the next begins, and looked up again later.

Beside the output FILE lies FILE.trials.jsonl: number, parameters, score and seconds of each trial, and at the end the
number of the best. A trial of the same candidate by the same evaluation that is there is not run again, unless `force`
replaces an output. Where the evaluation has changed in a way that its text does not show, remove the log.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paramsmith.disk import sync_data, sync_folder, write_at, write_error
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.inputs import open_regular, place, read_at

_MOST = 1_000_000_000  # bytes of a log


@dataclass(frozen=True)
class Trial:
    """One candidate and its score; None where that was not finite."""

    number: int
    parameters: dict[str, list[float]]
    score: float | None
    seconds: float

    @property
    def worth(self) -> float:
        """The score, with the worst there is for one that is not finite."""
        return -math.inf if self.score is None else self.score

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {"number": self.number, "parameters": self.parameters, "score": self.score, "seconds": self.seconds}


class TrialLog:
    """The log of one search: what is in it is looked up, what is not is evaluated and added, at once and for good.

    `key` says what makes a candidate and its score. A log of another key is Refused; `force` begins it anew, and so
    it does with the log of a search that came to its end.
    """

    def __init__(self, target: Path, key: str, *, force: bool) -> None:
        self.path = target.with_name(f"{target.name}.trials.jsonl")
        self.evaluated = 0
        self.size = 0  # bytes of whole trials
        self._key = key[:16]
        self._known: dict[str, Trial] = {}
        self._read(force)

    def run(self, parameters: dict[str, list[float]], evaluate: Callable[[], float | None]) -> Trial:
        """The trial of these parameters: the one that was logged, or a new one."""
        asked = json.dumps(parameters)
        if asked in self._known:
            return self._known[asked]
        began = time.perf_counter()
        try:
            score = evaluate()
        except Failed as problem:
            if self._known:
                problem.hint += f"; the same command goes on after the {len(self._known)} trials there are"
            raise
        trial = Trial(len(self._known), parameters, score, round(time.perf_counter() - began, 3))
        self._append(trial.to_json())
        self._known[asked] = trial
        self.evaluated += 1
        return trial

    def close(self, best: Trial) -> None:
        """Mark the log as that of a finished search."""
        size = self.size
        self._append({"best": best.number})
        self.size = size  # what comes later takes its place

    def _append(self, plain: dict[str, object]) -> None:
        line = json.dumps({**plain, "search": self._key}) + "\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o666)
            try:
                os.ftruncate(fd, self.size)  # what a killed process left of a line goes
                write_at(fd, line.encode(), self.size, self.path)
                sync_data(fd, self.path)
            finally:
                os.close(fd)
            if not self.size:
                sync_folder(self.path.parent)
        except OSError as error:
            raise write_error(error, self.path) from error
        self.size += len(line.encode())

    def _read(self, force: bool) -> None:
        if not os.path.lexists(self.path):
            return
        fd, status = open_regular(self.path)
        try:
            if status.st_size > _MOST:
                raise InvalidInput(f"{place(self.path)}: is no log of trials", "move it elsewhere")
            data = read_at(self.path, fd, 0, status.st_size)
        finally:
            os.close(fd)
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                return  # cut short by a kill
            trial = self._parsed(line, number, force)
            if trial is None:
                return
            self._known[json.dumps(trial.parameters)] = trial
            self.size += len(line)

    def _parsed(self, line: bytes, number: int, force: bool) -> Trial | None:
        """A line as a trial; None where the log ends, all of it forgotten where it is to be begun anew."""
        fact = "holds the trials of another search"
        try:
            plain = json.loads(line)
            if plain.pop("search") == self._key:
                if "best" not in plain:
                    return _trial(plain)
                fact = ""
        except (ValueError, KeyError, TypeError, AttributeError):
            fact = f"line {number} is no trial"
        if force:
            self._known, self.size = {}, 0
        elif fact:
            raise Refused(f"{place(self.path)}: {fact}", "--force begins it anew; or choose another output")
        return None


def _trial(plain: dict[str, object]) -> Trial:
    """A trial from what its line says. ValueError, KeyError or TypeError where that is none."""
    number, parameters, score, seconds = (plain[k] for k in ("number", "parameters", "score", "seconds"))
    if not isinstance(parameters, dict) or not isinstance(number, int) or not isinstance(seconds, int | float):
        raise ValueError(plain)
    held = {str(name): [float(value) for value in values] for name, values in parameters.items()}
    if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
        raise ValueError(plain)
    return Trial(number, held, score, seconds)
