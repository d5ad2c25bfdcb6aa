"""From a generator to one checkpoint: candidates, a selector, steps that finish, and a record of all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.finishing.chain import Step, finish
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.writing.conditions import one_of
from paramsmith.hypernet.writing.generation import Job, Named, Request, check_inputs, prepare
from paramsmith.hypernet.writing.held import write_held
from paramsmith.hypernet.writing.output import Written

from .drawing import Draw, draws
from .roles import Shown, Weights
from .selectors import Selected

Select: TypeAlias = Callable[[Draw, TargetSpec, Shown], Selected]


@dataclass(frozen=True)
class Choice:
    """What was chosen, with what the steps after it made of its weights; `record` is for generation.json."""

    selected: Selected
    weights: Weights
    record: Mapping[str, object]


def write_selected(
    generator: Named,
    output: Path,
    request: Request,
    shown: Shown,
    select: Select,
    *,
    steps: Sequence[Step] = (),
    force: bool = False,
) -> tuple[Written, Selected]:
    """Write what a selector chooses of the samples of one request, after these steps.

        write_selected(generator, out, Request(condition=data.condition), data.shown(),
                       lambda draw, spec, shown: BestOf(k=8).select(draw, shown, score))

    generation.json tells selector, k, all scores, what was kept, and what each step changed. InvalidInput for a request
    of several samples; else raises as `generate` and the selector do.
    """
    job = prepare(generator, request)
    check_inputs(output, request, job, generator)
    choice = chosen(job, shown, select, steps)
    return write_choice(job, output, choice, force=force), choice.selected


def chosen(job: Job, shown: Shown, select: Select, steps: Sequence[Step] = ()) -> Choice:
    """What a selector chooses of the samples of a job, after these steps. InvalidInput for a job of several samples."""
    if job.count != 1:
        raise InvalidInput(f"{job.count:,} samples are asked for, and one is selected", "leave n out, ask one thing")
    spec, model = job.outline.spec, job.source.generator.model
    own = {name: tensor.to(model.device) for name, tensor in one_of(job.condition, 0).items()}
    selected = select(draws(model, own, spec, job.seed, job.how), spec, shown)
    weights, changes = finish(selected.weights, *steps)
    rows = len(next(iter(shown.selection.values())))
    record: dict[str, object] = {"selected": selected.record(rows)}
    if changes:
        record["finished"] = [{"step": c.step, "tensor": c.name, "told": c.told, "numbers": c.count} for c in changes]
    return Choice(selected, weights, record)


def write_choice(job: Job, output: Path, choice: Choice, *, force: bool = False) -> Written:
    """Write what was chosen. Raises as `generate` does."""
    sample = job.sample(choice.selected.kept or 0, output)
    return write_held(sample, choice.weights, choice.record, threads=job.threads, force=force)
