"""Inputs that are on the Hub: how much of them a job needs, and having it here before the work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from paramsmith.checkpoint import Checkpoint
from paramsmith.destination import Destination
from paramsmith.disk import check_space
from paramsmith.hubcache import existing_cache
from paramsmith.progress import Progress, part_of

from .job import Job
from .options import RunOptions


def to_download(job: Job) -> int:
    """Bytes of weights that are not on this machine yet and that the job reads."""
    return sum(model.missing(names) for model, names in _needed(job))


def bring(job: Job, options: RunOptions, output: Path) -> None:
    """Have the weights on this machine, whole files of the Hub's cache; with `stream`, prepare for not keeping them.

    Refused when the disk has no room for them. Called once everything else has been found right.
    """
    needed = _needed(job)
    if options.stream:
        # in the staging folder, so that what a killed run leaves is found and removed
        home = Destination(output, force=False).staging / "streamed"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        check_space(home, sum(model.stream(names, home) for model, names in needed))
    else:
        _fetch(needed, options.progress)
    if isinstance(job.reference, Checkpoint):
        job.reference.fetch_companions()


def _fetch(needed: list[tuple[Checkpoint, list[str]]], progress: Progress | None) -> None:
    missing = [model.missing(names) for model, names in needed]
    total, done = sum(missing), 0
    if total:
        check_space(existing_cache(), total)
    for (model, names), nbytes in zip(needed, missing, strict=True):
        model.fetch(names, part_of(progress, done, total) if total else None)
        done += nbytes


def _needed(job: Job) -> list[tuple[Checkpoint, list[str]]]:
    """Every model of the Hub, and the names of the tensors that are read of it, in order."""
    everyone = (*job.models, *([job.base] if job.base else []))
    if not any(isinstance(model, Checkpoint) and model.snapshot for model in everyone):
        return []
    names: dict[int, tuple[Checkpoint, list[str]]] = {}
    for task in job.tasks:
        for part in (*task.sources, *task.grams):
            if isinstance(part.model, Checkpoint) and part.model.snapshot is not None:
                names.setdefault(id(part.model), (part.model, []))[1].append(part.name)
    return list(names.values())
