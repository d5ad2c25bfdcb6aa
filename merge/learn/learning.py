"""From tasks and models to a file of coefficients: what all gradient learners do around their loop."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from paramsmith import __version__
from paramsmith.coefficients import Coefficients
from paramsmith.device import pick_device
from paramsmith.errors import InvalidInput
from paramsmith.memory import StateDict
from paramsmith.merge.task import Task
from paramsmith.resumable import Resumable
from paramsmith.statistics import Readable, weights_digest

from .composition import Composition
from .feeds import Data
from .objectives import Objective
from .selection import Selection
from .training import Course, Learned, Progress, Training


@dataclass(frozen=True)
class Report:
    """What was learned: the scores of the step that was kept, one a validation task, and what led there."""

    output: Path
    scores: tuple[float, ...]
    best_step: int
    history: tuple[Mapping[str, object], ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        told: dict[str, object] = {"output": str(self.output), "scores": list(self.scores), "step": self.best_step}
        return {**told, "history": list(self.history), "warnings": list(self.warnings), "seconds": self.seconds}


@dataclass(frozen=True)
class Lesson:
    """Everything that decides what is learned, and what the file says of it."""

    base: Readable
    models: Sequence[Readable]
    composition: Composition
    objective: Objective
    course: Course
    start: float
    about: Mapping[str, object]  # as JSON: the settings and the data
    method: str
    parameters: Mapping[str, object]
    seed: int | None = None
    selection: Selection | None = None


def move(tasks: Sequence[Task], device: str | None) -> None:
    """Put the tasks' models on a device, unless they stay where they are."""
    if device is not None:
        for task in tasks:
            task.model.to(pick_device(device))


def learn(lesson: Lesson, output: Path, *, force: bool, progress: Progress | None) -> Report:
    """Learn, or go on where it was interrupted, and put the file in place. InvalidInput, Refused or Failed."""
    started, composition = time.perf_counter(), lesson.composition
    digests = tuple(weights_digest(model) for model in lesson.models)
    base = weights_digest(lesson.base)
    identity = [__version__, torch.__version__, digests, base, _rest(composition), dict(lesson.about)]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    with Resumable(output, key, force=force) as keeper, composition:
        start = torch.full(composition.shape, lesson.start)
        training = Training(composition, lesson.objective, lesson.course, start, selection=lesson.selection)
        learned = training.run(keeper, progress)
        made = _coefficients(lesson, learned, digests, base)
        keeper.publish_bytes(made.to_bytes(output.suffix == ".safetensors"))
    seconds = time.perf_counter() - started
    warnings, history = tuple(composition.warnings), tuple(learned.history)
    return Report(output, learned.scores, learned.best_step, history, warnings, seconds)


def _coefficients(lesson: Lesson, learned: Learned, models: tuple[str, ...], base: str) -> Coefficients:
    """The file: 0 where nothing was composed, so that the base's tensors stay."""
    count, _, partitions = lesson.composition.shape
    listed = learned.coefficients.transpose(0, 1).tolist()
    told = {"best_step": learned.best_step, "scores": list(learned.scores), "history": learned.history}
    return Coefficients(
        method=lesson.method,
        parameters=dict(lesson.parameters),
        models=models,
        base=base,
        values={name: tuple(map(tuple, rows)) for name, rows in zip(lesson.composition.names, listed, strict=True)},
        default=((0.0,) * partitions,) * count,
        seed=lesson.seed,
        learned={**lesson.about, **told},
    )


def _rest(composition: Composition) -> list[str]:
    """A digest of what the models have beside the composed parameters: heads and buffers decide too."""
    chosen, found = {id(parameter) for parameter in composition.parameters}, []
    for body in composition.bodies:
        named = [*body.named_parameters(), *body.named_buffers()]
        rest = StateDict({name: tensor for name, tensor in named if id(tensor) not in chosen}, "the task's model")
        found.append(weights_digest(rest))
    return found


def told(looked: Sequence[Data]) -> list[dict[str, object]]:
    """What a file says of the data."""
    return [{"examples": data.examples, "digest": data.digest, "code": data.code} for data in looked]


def check_positive(**given: float | None) -> None:
    """InvalidInput for a number that is not above 0."""
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise InvalidInput(f"{name} is {value}", "give a number above 0")
