"""AdaMerging: coefficients of task arithmetic that make the predictions on unlabelled data certain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.memory import StateDict
from paramsmith.merge.task import Task
from paramsmith.ops import keep, trim, votes

from .composition import Composition, Prepare
from .feeds import look_through
from .learning import Lesson, Report, check_positive, learn, move, told
from .objectives import Batchwise, check_categorical, entropy
from .selection import BestMean
from .training import Course, Progress

Per: TypeAlias = Literal["layer", "task"]
# The ++ variant as this project's ties: the largest fifth of each task vector, of that what agrees with the sign
# elected, summed with weights and not averaged.
_TIES = {"density": 0.2, "normalize": False, "flavour": "native"}


def learn_adamerging(
    tasks: Sequence[Task],
    base: Checkpoint | StateDict,
    models: Sequence[Checkpoint | StateDict],
    output: str | os.PathLike[str],
    *,
    per: Per = "layer",
    plus_plus: bool = False,
    steps: int = 500,
    lr: float = 1e-3,
    init: float = 0.3,
    validation: Sequence[Task] | None = None,
    references: Sequence[float] | None = None,
    exclude: Sequence[str] = (),
    device: str | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Minimise the mean entropy of the predictions over λ of θ^(l) = θ_0^(l) + Σ_i λ_i^(l) τ_i^(l), with Adam.

    λ begins at `init`; one for each model and tensor, or for each model (`per` task). Each step takes one batch of
    every task, labels unused; the authors' have 16 examples. plus_plus: τ trimmed to its largest 20 % and to the
    entries that agree with the elected sign. The file is for task_arithmetic, that of plus_plus for ties, which wants
    the same `exclude`. For the rest see learn_atlas; without validation the last step counts.

    Paper: Yang et al., AdaMerging: adaptive model merging for multi-task learning, arXiv:2310.02575.
    """
    if not tasks:
        raise InvalidInput("no tasks are given", "give at least one")
    if per not in get_args(Per):
        raise InvalidInput(f"coefficients per {printable(per)}", "layer or task")
    check_positive(steps=steps, lr=lr)
    check_categorical(tasks, "adamerging")
    everyone = [*tasks, *(validation or ())]
    move(everyone, device)
    looked = [look_through(task) for task in everyone]
    prepare = _trimming(base, models, exclude, threads) if plus_plus else None
    told_of = {"per": per, "plus_plus": plus_plus, "steps": steps, "lr": lr, "init": init, "exclude": list(exclude)}
    epoch = min(data.batches for data in looked[: len(tasks)])
    lesson = Lesson(
        base,
        models,
        Composition(everyone, base, models, exclude=exclude, threads=threads, prepare=prepare),
        Batchwise(tasks, looked[: len(tasks)], lambda outputs, batch, task: entropy(outputs)),
        Course(steps, epoch, lr, shared=per == "task"),
        init,
        {"learner": "adamerging", **told_of, "references": references and list(references), "data": told(looked)},
        "ties" if plus_plus else "task_arithmetic",
        _TIES if plus_plus else {},
        None,
        BestMean(validation, references) if validation else None,
    )
    return learn(lesson, Path(output), force=force, progress=progress)


def _trimming(
    base: Checkpoint | StateDict,
    models: Sequence[Checkpoint | StateDict],
    exclude: Sequence[str],
    threads: int | None,
) -> Prepare:
    """What trims a block's task vectors and elects their signs, by the thresholds that a merge with ties finds."""
    from paramsmith.merge.job import prepare
    from paramsmith.merge.options import RunOptions
    from paramsmith.merge.passes import Runner
    from paramsmith.merge.setup import prepare_setup
    from paramsmith.merge.survey import run_survey
    from paramsmith.recipe import ModelEntry, Recipe

    entries = tuple(ModelEntry(model=model.label) for model in models)
    recipe = Recipe(
        method="ties", models=entries, base=base.label, parameters=dict(_TIES), missing="base", exclude=tuple(exclude)
    )
    job = prepare(recipe, models, base)
    setup, _ = prepare_setup(job, RunOptions(compile="never", threads=threads))
    (survey,) = job.method.surveys(job.options)
    threshold = run_survey(survey, job.surveyed, Runner(job, setup, lambda nbytes: None))[""]  # (models, 1)

    def trimmed(deltas: Tensor) -> Tensor:
        kept = trim(deltas, threshold)
        return keep(kept * torch.sign(votes(kept, "total")) > 0, kept)

    return trimmed
