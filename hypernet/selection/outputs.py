"""From a generator to one checkpoint: candidates, a selector, steps that finish, and a record of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.finishing.chain import Step, finish
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.writing.conditions import one_of
from paramsmith.hypernet.writing.generation import Named, Request, prepare
from paramsmith.hypernet.writing.held import write_held
from paramsmith.hypernet.writing.output import Written

from .drawing import Draw, draws
from .roles import Shown
from .selectors import Selected

Select: TypeAlias = Callable[[Draw, TargetSpec, Shown], Selected]


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
    if job.count != 1:
        raise InvalidInput(f"{job.count:,} samples are asked for, and one is selected", "leave n out, ask one thing")
    model, spec = job.source.generator.model, job.outline.spec
    own = {name: tensor.to(model.device) for name, tensor in one_of(job.condition, 0).items()}
    selected = select(draws(model, own, spec, request.seed), spec, shown)
    weights, changes = finish(selected.weights, *steps)
    rows = len(next(iter(shown.selection.values())))
    made: dict[str, object] = {"selected": selected.record(rows)}
    if changes:
        made["finished"] = [{"step": c.step, "tensor": c.name, "told": c.told, "numbers": c.count} for c in changes]
    sample = job.sample(selected.kept or 0, output)
    return write_held(sample, weights, made, threads=job.threads, force=force), selected
