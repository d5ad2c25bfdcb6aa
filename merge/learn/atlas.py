"""aTLAS: a learned coefficient for each task vector and tensor, and each of K partitions of the tensor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from paramsmith.errors import InvalidInput, printable
from paramsmith.merge.task import Task
from paramsmith.statistics import Readable

from . import objectives
from .composition import Composition
from .feeds import Data, check_classes, look_through
from .learning import Lesson, Report, check_positive, learn, move, told
from .objectives import RELIABLE, Batchwise, Objective, check_categorical, entropy, supervised
from .partitions import MOST
from .pseudo_labels import PseudoLabels
from .selection import BestMean, LowestTarget, Selection
from .training import Course, Progress

Schedule: TypeAlias = Literal["constant", "cosine"]
PresetName: TypeAlias = Literal["addition", "negation", "few-shot", "adapt"]


@dataclass(frozen=True)
class Preset:
    """What the authors use for a purpose; an epoch has at least `least` batches."""

    objective: objectives.Name
    lr: float
    epochs: int
    schedule: Schedule
    least: int = 1


# negation: the middle of what the authors chose dataset by dataset, 2e-3 to 1e-2 and 2 to 20 epochs
PRESETS: dict[PresetName, Preset] = {
    "addition": Preset("supervised", 1e-3, 20, "constant"),
    "negation": Preset("negation", 5e-3, 10, "constant"),
    "few-shot": Preset("supervised", 1e-1, 10, "cosine", least=10),
    "adapt": Preset("ufm", 1e-3, 10, "cosine"),
}
_USUAL: dict[objectives.Name, PresetName] = {
    "supervised": "addition",
    "negation": "negation",
    "entropy": "adapt",
    "ufm": "adapt",
}


@dataclass(frozen=True)
class _Settings:
    """What decides what is learned, beside the tasks and the models."""

    preset: PresetName | None
    objective: objectives.Name | None
    lr: float | None
    epochs: int | None
    steps: int | None
    schedule: Schedule | None
    weight_decay: float
    clip: float | None
    penalty: float | None
    partitions: int
    isotropic: bool
    budget: int | None
    exclude: tuple[str, ...]
    references: tuple[float, ...] | None
    seed: int


def learn_atlas(
    tasks: Sequence[Task],
    base: Readable,
    models: Sequence[Readable],
    output: str | os.PathLike[str],
    *,
    preset: PresetName | None = None,
    objective: objectives.Name | None = None,
    control: Task | None = None,
    validation: Sequence[Task] | None = None,
    references: Sequence[float] | None = None,
    partitions: int = 1,
    isotropic: bool = False,
    budget: int | None = None,
    exclude: Sequence[str] = (),
    steps: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    schedule: Schedule | None = None,
    weight_decay: float = 0.1,
    clip: float | None = 1.0,
    penalty: float | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Learn λ of θ^(j) = θ_0^(j) + Σ_i λ_i^(j) τ_i^(j) from tasks, starting at 0, and write a file of coefficients.

    Each step takes one batch of every task; an epoch has as many steps as the task with the fewest batches. `preset`
    fills in what is not given:

        addition    supervised  lr 1e-3  20 epochs              few-shot  supervised  lr 1e-1  10 epochs, cosine
        negation    negation    lr 5e-3  10 epochs              adapt     ufm         lr 1e-3  10 epochs, cosine

    objective: supervised, Σ_t mean loss; negation, the loss of `control` minus that of the tasks; entropy of the
    predictions below 0.4 ln C; ufm, pseudo-labels. The last two need no labels. validation: tasks (for negation the
    targets', then the control's) whose scores choose the best epoch, as a share of `references`; without them the last
    epoch counts, and negation judges by its own tasks. isotropic: one coefficient a task vector. partitions: K for each
    tensor, by a seeded random map. budget: only the b task vectors with the largest |∂L/∂λ| at each tensor.

    Tensors that the base or a model lacks, or that `exclude` names, stay as they are in the tasks' models. Memory: the
    tasks' models (tasks may share one), their gradients and activations, however many task vectors there are; ufm also
    holds its examples. The tasks' models end with the coefficients that were found. Raises InvalidInput, Refused or
    Failed; killed, the same call goes on.

    Paper: Zhang et al., Knowledge composition using task vectors with learned anisotropic scaling, arXiv:2407.02880.
    """
    given = (preset, objective, lr, epochs, steps, schedule, weight_decay, clip, penalty, partitions, isotropic, budget)
    settings = _filled(_Settings(*given, tuple(exclude), tuple(references) if references else None, seed))
    _check(settings, tasks, models, control, validation)
    trained = [*tasks, *([control] if control else [])]
    everyone = [*trained, *(validation or ())]
    move(everyone, device)
    looked = [look_through(task) for task in everyone]
    course = _course(settings, looked[: len(trained)])
    lesson = Lesson(
        base,
        models,
        Composition(everyone, base, models, exclude=exclude, partitions=partitions, seed=seed, threads=threads),
        _objective(settings, trained, looked[: len(trained)], course),
        course,
        0.0,
        {"learner": "atlas", **vars(settings), "data": told(looked)},
        "atlas" if partitions > 1 else "task_arithmetic",
        {"partitions": partitions} if partitions > 1 else {},
        seed if partitions > 1 else None,
        _selection(settings, tasks, control, validation),
    )
    return learn(lesson, Path(output), force=force, progress=progress)


def _filled(settings: _Settings) -> _Settings:
    """The settings with what the preset says where nothing was said."""
    name = settings.preset or (_USUAL.get(settings.objective, "addition") if settings.objective else "addition")
    if name not in PRESETS:
        raise InvalidInput(f"there is no preset {printable(name)}", f"one of {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    filled = {
        "preset": name,
        "objective": settings.objective or chosen.objective,
        "lr": chosen.lr if settings.lr is None else settings.lr,
        "epochs": chosen.epochs if settings.epochs is None and settings.steps is None else settings.epochs,
        "schedule": settings.schedule or chosen.schedule,
    }
    return replace(settings, **filled)  # type: ignore[arg-type]


def _check(
    settings: _Settings,
    tasks: Sequence[Task],
    models: Sequence[Readable],
    control: Task | None,
    validation: Sequence[Task] | None,
) -> None:
    """InvalidInput for what cannot be learned."""
    if not tasks:
        raise InvalidInput("no tasks are given", "give at least one")
    check_positive(lr=settings.lr, epochs=settings.epochs, steps=settings.steps, clip=settings.clip)
    check_positive(penalty=settings.penalty, budget=settings.budget, partitions=settings.partitions)
    if settings.objective not in _USUAL:
        raise InvalidInput(f"there is no objective {printable(settings.objective)}", f"one of {', '.join(_USUAL)}")
    if settings.schedule not in get_args(Schedule):
        raise InvalidInput(f"there is no schedule {printable(settings.schedule)}", "constant or cosine")
    if not 0 <= settings.weight_decay < float("inf"):
        raise InvalidInput(f"weight_decay is {settings.weight_decay}", "give 0 or more")
    if settings.partitions > MOST:
        raise InvalidInput(f"{settings.partitions:,} partitions are too many", f"give at most {MOST:,}")
    if settings.budget is not None and settings.budget > len(models):
        raise InvalidInput(f"the budget is {settings.budget} task vectors of {len(models)}", "give fewer, or none")
    if (control is None) == (settings.objective == "negation"):
        fact = "negation needs a control task" if control is None else f"{settings.objective} has no control task"
        raise InvalidInput(fact, "the control is what must not be forgotten while the tasks are")
    if control is not None and validation is not None and len(validation) != len(tasks) + 1:
        fact = f"{len(validation)} validation tasks for {len(tasks)} targets and a control"
        raise InvalidInput(fact, "give one for each target, then one for the control")


def _course(settings: _Settings, looked: Sequence[Data]) -> Course:
    least = PRESETS[settings.preset or "addition"].least
    epoch = max(least, min(data.batches for data in looked))
    steps = settings.steps if settings.steps is not None else (settings.epochs or 1) * epoch
    return Course(
        steps,
        epoch,
        settings.lr or 0.0,
        settings.schedule == "cosine",
        settings.weight_decay,
        settings.clip,
        settings.isotropic,
        settings.penalty,
        settings.budget,
    )


def _objective(settings: _Settings, tasks: Sequence[Task], looked: Sequence[Data], course: Course) -> Objective:
    if settings.objective == "ufm":
        check_categorical(tasks, "ufm")
        return PseudoLabels(tasks, looked, course.steps, course.epoch, settings.seed)
    if settings.objective == "entropy":
        check_categorical(tasks, "entropy")
        return Batchwise(tasks, looked, lambda outputs, batch, task: entropy(outputs, RELIABLE))
    if settings.objective == "negation":
        return Batchwise(tasks, looked, supervised, [-1] * (len(tasks) - 1) + [1])
    check_classes(looked, tasks)
    return Batchwise(tasks, looked, supervised)


def _selection(
    settings: _Settings, tasks: Sequence[Task], control: Task | None, validation: Sequence[Task] | None
) -> Selection | None:
    if control is not None:
        *targets, kept = validation or (*tasks, control)
        return LowestTarget(targets, kept)
    return BestMean(validation, settings.references) if validation else None
