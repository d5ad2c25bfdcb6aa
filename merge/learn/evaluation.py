"""What gives a candidate its score: a command or a function of the user's, or tasks. Higher is better.

"python score.py {model}": a shell command; `{model}` becomes the candidate's folder (its file, where the models are
bare files), and the last line that it prints is the score. "file.py:fn": a Python function
`fn(model: dict[str, Tensor]) -> float` of the candidate's tensors by name, or in Python such a function itself.
A score that is not finite counts as the worst there is. A command that fails or prints no number, and a function that
raises or returns none, end the search.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.memory import as_bytes
from paramsmith.merge.task import IGNORED, Task, example_losses
from paramsmith.userfile import call_user, load_function

from .feeds import batches_of, on_device, outputs_of
from .objectives import score

Metric: TypeAlias = Literal["accuracy", "loss"]
_FUNCTION = re.compile(r"(?P<file>[^{}]+\.py):(?P<name>[A-Za-z_]\w*)")
_MODEL = "{model}"


@dataclass(frozen=True)
class TaskScore:
    """Evaluation by tasks that are made for each candidate: the mean of their scores.

    `tasks` makes them of a candidate's path; `identity` tells them and their data from others. metric `accuracy`: the
    share of labels, minus the mean loss for regression; `loss`: minus the mean negative log-likelihood of a label.
    """

    tasks: Callable[[str], Sequence[Task]]
    identity: str
    metric: Metric = "accuracy"


Evaluate: TypeAlias = str | TaskScore | Callable[[dict[str, Tensor]], object]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready: of a model's path, and of its tensors too where that is what a function takes.

    `identity` tells it from another one, in another process too.
    """

    identity: str
    score: Callable[[Path], float]
    score_tensors: Callable[[dict[str, Tensor]], float] | None = None

    @classmethod
    def of(cls, evaluate: Evaluate) -> Evaluation:
        """Make one. InvalidInput says what is wrong with it."""
        if isinstance(evaluate, TaskScore):
            if evaluate.metric not in get_args(Metric):
                raise InvalidInput(f"{printable(evaluate.metric)!r} is no metric", "accuracy or loss")
            return cls(_hashed("tasks", evaluate.metric, evaluate.identity), lambda model: _by_tasks(evaluate, model))
        if not isinstance(evaluate, str):
            name = getattr(evaluate, "__qualname__", type(evaluate).__qualname__)
            return cls._of_function(evaluate, name, _hashed("function", name, _source(evaluate)))
        if found := _FUNCTION.fullmatch(evaluate.strip()):
            function = load_function(Path(found["file"]), found["name"])
            text = Path(found["file"]).read_text(encoding="utf-8", errors="replace")
            return cls._of_function(function, evaluate, _hashed("file", found["name"], text))
        if _MODEL not in evaluate:
            fact = f"{printable(evaluate)!r} says nowhere which model to evaluate"
            raise InvalidInput(fact, f"a command with {_MODEL} in it, or file.py:function")
        return cls(_hashed("command", evaluate), lambda model: _printed(evaluate, model))

    @classmethod
    def _of_function(cls, function: Callable[..., object], name: str, identity: str) -> Evaluation:
        def score_tensors(model: dict[str, Tensor]) -> float:
            return _called(function, name, model)

        return cls(identity, lambda model: score_tensors(load_tensors(model)), score_tensors)

    def __call__(self, model: Path | dict[str, Tensor]) -> float | None:
        """The score of the model at a path, or of its tensors; None where it is not finite. Raises Failed."""
        if isinstance(model, Path):
            value = self.score(model)
        elif self.score_tensors is not None:
            value = self.score_tensors(model)
        else:
            raise TypeError("this evaluation takes a path")
        return value if math.isfinite(value) else None


def load_tensors(model: Path) -> dict[str, Tensor]:
    """A model's tensors by name, on the CPU, ties under each of their names; of a bare file or a folder."""
    with Checkpoint.open(model) as opened:
        held = {}
        for name, info in opened.tensors.items():
            held[name] = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
            if info.nbytes:
                opened.read_into(name, 0, as_bytes(held[name]))
        return held | {alias: held[name] for alias, name in opened.aliases.items() if name in held}


def _hashed(*said: str) -> str:
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


def _source(function: Callable[..., object]) -> str:
    """What tells one function from another of the same name: its text, where that can be had."""
    try:
        return inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (TypeError, OSError):
        return ""


def _called(function: Callable[..., object], name: str, model: dict[str, Tensor]) -> float:
    given = call_user(function, name, model)
    try:
        return float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        fact = f"{printable(name)} returned {type(given).__name__}, which is no score"
        raise Failed(fact, "return one number, higher is better") from None


def _printed(command: str, model: Path) -> float:
    pipe = subprocess.PIPE
    words = command.replace(_MODEL, shlex.quote(str(model)))
    done = subprocess.run(words, shell=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, check=False)
    out, err = _last_line(done.stdout), _last_line(done.stderr)
    hint = f"it gets a model for {_MODEL}, ends with 0, and the last line it prints is the score"
    if done.returncode:
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise Failed(f"{printable(command)!r} {how}" + (f": {printable(err, 200)}" if err else ""), hint)
    try:
        return float(out)
    except ValueError:
        said = f"printed {printable(out)!r}, which is no score" if out else "printed nothing"
        raise Failed(f"{printable(command)!r} {said}", hint) from None


def _last_line(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _by_tasks(evaluate: TaskScore, model: Path) -> float:
    tasks = evaluate.tasks(str(model))
    if not tasks:
        raise InvalidInput("there are no tasks to score a model by", "give at least one")
    by = score if evaluate.metric == "accuracy" else _likelihood
    return sum(by(task) for task in tasks) / len(tasks)


@torch.no_grad()
def _likelihood(task: Task) -> float:
    """Mean log-likelihood of a label that counts."""
    if task.likelihood == "regression":
        return score(task)
    task.model.eval()
    total = counted = 0.0
    for batch in batches_of(task):
        moved = on_device(task, batch)
        total += float(example_losses(outputs_of(task, moved), moved, task.likelihood).double().sum())
        counted += int((moved["labels"] != IGNORED).sum())
    if not counted:
        raise InvalidInput("no example has a label", "give labels other than -100")
    return -total / counted
