"""`generate --select`: a task gives the data, a selector chooses among samples, and what it chose is written.

The task draws an episode of its split "test". The generator is asked by its condition, the selector sees its support,
and its query tells afterwards what the chosen network is worth on data that it was not chosen by.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from paramsmith.destination import Destination
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Batch, Episode, Task
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.training.tasks import drawn, load_task
from paramsmith.hypernet.writing.generation import Job, Named, Request, check_inputs, prepare, told
from paramsmith.hypernet.writing.output import Written
from paramsmith.hypernet.writing.samples import finished, stored_dtype
from paramsmith.hypernet.writing.sources import Source, source_of
from paramsmith.lineage import local_names
from paramsmith.progress import Progress
from paramsmith.userfile import call_user

from .outputs import Choice, chosen, write_choice
from .roles import Data, Score, Weights, score_of
from .selecting import Ready, Selecting, ready
from .selectors import Selected


@dataclass(frozen=True)
class Plan:
    """A selection ready to run: everything was found right, and nothing is drawn. `tasks` is what they are called."""

    job: Job
    request: Request
    how: Selecting
    generator: Named
    reference: str
    tasks: str
    data: Data
    score: Score
    selector: Ready


@dataclass(frozen=True)
class Chosen:
    """What was chosen and written. `report`: its score, as it is stored, on `rows` rows that it was not chosen by."""

    written: Written
    selected: Selected
    report: float
    rows: int
    by: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {**self.selected.record(self.by), "report": {"rows": self.rows, "score": self.report}}


def planned(generator: Named, reference: str, request: Request, how: Selecting) -> Plan:
    """Draw the data by `request.seed`, and hold generator, task and selector against each other.

    The target is that of the episode, unless `request.like` says it, and what is asked for its condition, but for what
    `request.condition` says. InvalidInput, Failed.
    """
    if request.n != 1:
        raise InvalidInput(f"{request.n:,} samples are asked for, and one is selected", "leave -n out; see -k")
    if how.base is not None and request.form != "checkpoint":
        raise InvalidInput(f"the base is begun with, and the result is no {request.form} for it", "leave --as out")
    task = load_task(reference)
    with seeded(request.seed):  # for what a task draws from torch's own generator
        episode = drawn(task, torch.Generator().manual_seed(request.seed), "test")
    data = Data.of_episode(episode)
    source = source_of(generator, request.seed)
    job = prepare(source, _asked(request, source, episode, reference))
    if job.outline.spec.hash != source.generator.target(episode.target.spec).hash:
        raise InvalidInput("another target is asked for than that of the task", "leave --like and --classes out")
    if job.count != 1:
        raise InvalidInput(f"{job.count:,} conditions are asked for, and one network is selected", "give one condition")
    return Plan(
        job=job,
        request=request,
        how=how,
        generator=generator,
        reference=reference,
        tasks=local_names([reference])[0],
        data=data,
        score=_score(task, episode, reference),
        selector=ready(how, job),
    )


def run(plan: Plan, output: Path, *, force: bool = False, progress: Progress | None = None) -> Chosen:
    """Select, and write what was selected. Raises as `generate` does; Failed where no score is a number."""
    started, job = time.perf_counter(), plan.job
    check_inputs(output, plan.request, job, plan.generator, plan.reference.rpartition(":")[0], plan.how.base)
    _check_free(output, force)
    choice = chosen(job, plan.data.shown(), plan.selector.by(_counted(plan, progress)))
    report = float(plan.score(_stored(job, choice.weights), plan.data.report))
    rows, by = (len(next(iter(batch.values()))) for batch in (plan.data.report, plan.data.selection))
    record: dict[str, object] = {**choice.selected.record(by), "tasks": plan.tasks}
    record["report"] = {"rows": rows, "score": report if math.isfinite(report) else None}
    if plan.selector.begun is not None:
        record["begun"] = plan.selector.begun.model_dump(mode="json")
    written = write_choice(job, output, replace(choice, record={**choice.record, "selected": record}), force=force)
    seconds = time.perf_counter() - started
    return Chosen(written, choice.selected, report, rows, by, seconds, (*told(job), *_alike(choice)))


def _asked(request: Request, source: Source, episode: Episode, reference: str) -> Request:
    """The request, for the target and the condition of an episode. InvalidInput for a target that is not made."""
    spec = episode.target.spec
    try:
        source.generator.target(spec)
    except InvalidInput as problem:
        fact = f"the target of {printable(reference)} cannot be made: {problem.fact}"
        raise InvalidInput(fact, "name the task that the generator was trained for") from None
    own = {name: episode.condition[name] for name in source.generator.shapes if name in episode.condition}
    like = spec if request.like is None else request.like
    return replace(request, like=like, condition={**own, **request.condition})


def _check_free(output: Path, force: bool) -> None:
    """Refused where the output cannot be put, before anything is drawn."""
    place = Destination(output, force=force)
    resumed = place.staging.is_dir()
    place.claim()
    place.leave(keep=resumed)


def _score(task: Task, episode: Episode, reference: str) -> Score:
    """The task's score, where its data lie; Failed names the file where it raises."""
    own = score_of(task, episode.target)

    def score(weights: Weights, batch: Batch) -> float:
        device = next(iter(batch.values())).device
        moved = {name: values.to(device) for name, values in weights.items()}
        return float(call_user(own, reference, moved, batch))  # type: ignore[arg-type]  # `own` gives a float

    return score


def _counted(plan: Plan, progress: Progress | None) -> Score:
    """The score, which tells how many candidates it has seen."""
    done = 0

    def score(weights: Weights, batch: Batch) -> float:
        nonlocal done
        found = plan.score(weights, batch)
        done = min(done + 1, plan.selector.candidates)  # what is begun with is scored too, and so is a mean
        if progress is not None:
            progress(done, plan.selector.candidates)
        return found

    return score


def _stored(job: Job, weights: Weights) -> Weights:
    """What will be read back of these weights: of the type that they are stored in."""
    spec, dtype = job.outline.spec, job.outline.dtype
    slots = {slot.name: slot for slot in spec.slots}
    return {
        name: finished(slots[name], values, stored_dtype(slots[name], dtype)).float() if name in slots else values
        for name, values in weights.items()
    }


def _alike(choice: Choice) -> tuple[str, ...]:
    scores = {score for score in choice.selected.scores if not math.isnan(score)}
    if len(choice.selected.scores) < 2 or len(scores) != 1:
        return ()
    return (f"all {len(choice.selected.scores):,} candidates score the same: the samples may be one and the same",)
