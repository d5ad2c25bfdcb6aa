"""Run a job: survey passes, then one pass that reads, merges and writes every block. The only loop of this half."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paramsmith import __version__
from paramsmith.blocks import Block, cut
from paramsmith.errors import Failed, printable
from paramsmith.order import sample_size
from paramsmith.stream import Scratch, read_row, run_workers
from paramsmith.surveys import OrderStatistic

from .health import Health
from .job import Job, MergeTask
from .matrices import matrix_bytes, run_matrices
from .passes import FIRST_OUT, Pass, Runner, Setup
from .survey import run_survey, sets_of


class Sink(Protocol):
    """Where results go: a Writer or a MemorySink."""

    def write(self, name: str, start: int, buffer: memoryview) -> None:
        """Put bytes of a tensor at their place."""
        ...

    def finish(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """These byte ranges (tensor, start, end) are written."""
        ...

    def is_finished(self, name: str, start: int, end: int) -> bool:
        """Whether an earlier run wrote that range."""
        ...

    def remember(self, key: str, value: object) -> None:
        """Keep a small value for a resumed run."""
        ...

    def recall(self, key: str) -> object | None:
        """A value an earlier run kept."""
        ...


def run_job(job: Job, setup: Setup, sink: Sink, progress: Callable[[int, int], None] | None) -> list[str]:
    """Do the work; the warnings that only data can give."""
    meter = _Meter(total_bytes(job, setup.sample), progress)
    runner = Runner(job, setup, meter.add)
    tasks = job.merged
    warnings: list[str] = []
    if job.surveyed:
        for survey in job.method.surveys(job.options):
            kept = sink.recall(survey.name)
            values = run_survey(survey, job.surveyed, runner) if kept is None else _revived(kept)
            if kept is None:
                sink.remember(survey.name, {key: value.tolist() for key, value in values.items()})
            if isinstance(survey, OrderStatistic):
                warnings += _notes(survey, values, job)
                values = {key: survey.then(value) if survey.then else value for key, value in values.items()}
            runner.values[survey.name] = {k: v.to(setup.device, runner.wide) for k, v in values.items()}
    warnings += _copies(job, setup, sink, meter)
    health = Health(job, runner.wide, sink.remember, sink.recall)
    _output(tasks, runner, sink, health)

    def write(block: Block[MergeTask], out: Tensor, scratch: Scratch) -> None:
        held = scratch.take("result", tuple(out.shape), out.dtype, host=True).copy_(out)
        _write(block, scratch.bytes_of("result")[: held.nbytes], sink)

    run_matrices(runner, health, lambda block: all(sink.is_finished(*done) for done in _ranges(block)), write)
    return warnings + health.warnings()


def total_bytes(job: Job, sample: int) -> int:
    """Bytes that will be read: once a pass, and about what order statistics sample of them, `sample` elements a set."""
    surveys = job.method.surveys(job.options)
    once = sum(t.count * p.dtype.itemsize for t in job.merged for p in t.sources)
    whole = sum(map(matrix_bytes, job.matrices))
    copies = sum(t.spec.nbytes * len(t.sources) for t in job.tasks if t.copied)
    drawn = 0.0
    for survey in (s for s in surveys if isinstance(s, OrderStatistic) and sample):
        for tasks in sets_of(survey, job.surveyed).values():
            count = sum(task.count for task in tasks)
            nbytes = sum(task.count * part.dtype.itemsize for task in tasks for part in task.sources)
            drawn += nbytes * (share if (share := sample_size(count, sample) / count) < 1 else 0)
    return once * (1 + len(surveys)) + whole + copies + int(drawn)


def job_key(job: Job, compiled: bool) -> str:
    """What makes an interrupted run this one: recipe, inputs to the byte, arithmetic, version."""
    models = [m.fingerprint() for m in ([job.base] if job.base else []) + list(job.models)]
    plain = [__version__, torch.__version__, compiled, job.recipe.model_dump(mode="json"), models, job.beside]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _output(tasks: Sequence[MergeTask], runner: Runner, sink: Sink, health: Health) -> None:
    group = runner.group if runner.packable else None

    def todo() -> Iterator[Block[MergeTask]]:
        for block in cut(tasks, runner.block, group):
            if all(sink.is_finished(*done) for done in _ranges(block)):
                health.skip(block)
                runner.advance(block.count * sum(p.dtype.itemsize for p in block.task.sources))
            else:
                yield block

    def work(block: Block[MergeTask], run: Pass, scratch: Scratch) -> None:
        out, top = run(block, scratch)
        health.see(block, out, float(top), scratch)
        _write(block, _on_host(out, scratch), sink)

    runner.over(todo(), None, "output", work)


def _on_host(out: Tensor, scratch: Scratch) -> memoryview:
    """The result's bytes, read for writing."""
    if out.device.type == "cpu":
        return scratch.bytes_of(FIRST_OUT)[: out.nbytes]
    held = scratch.take("result", tuple(out.shape), out.dtype, host=True)
    held.copy_(out, non_blocking=True)
    torch.cuda.current_stream(out.device).synchronize()
    return scratch.bytes_of("result")[: out.nbytes]


def _write(block: Block[MergeTask], data: memoryview, sink: Sink) -> None:
    size = block.task.spec.dtype.itemsize
    for span in block.spans:
        part = data[span.at * size : (span.at + span.count) * size]
        sink.write(span.task.spec.name, span.start * size, part)
    sink.finish(_ranges(block))


def _ranges(block: Block[MergeTask]) -> list[tuple[str, int, int]]:
    size = block.task.spec.dtype.itemsize
    return [(s.task.spec.name, s.start * size, (s.start + s.count) * size) for s in block.spans]


def _copies(job: Job, setup: Setup, sink: Sink, meter: _Meter) -> list[str]:
    """Copy what is not merged, byte by byte, and hold it against the other models'."""
    tasks = [task for task in job.tasks if task.copied and task.count]
    differing: set[str] = set()

    def work(block: Block[MergeTask], scratch: Scratch) -> None:
        task, size = block.task, block.count * block.task.spec.dtype.itemsize
        held = scratch.take("copied", (size,), torch.uint8, host=True)
        read_row(block, 0, scratch.bytes_of("copied"))
        for row in range(1, len(task.sources)):
            other = scratch.take("other", (size,), torch.uint8, host=True)
            read_row(block, row, scratch.bytes_of("other"))
            if not torch.equal(held, other):
                differing.add(task.spec.name)
        meter.add(size * len(task.sources))
        if not all(sink.is_finished(*done) for done in _ranges(block)):
            _write(block, scratch.bytes_of("copied"), sink)

    run_workers(cut(tasks, setup.eager_block), work, setup.threads, setup.device)
    if differing and job.base is None:
        name = printable(sorted(differing)[0])
        hint = "only floating-point tensors are merged; name a base to take the others from it"
        raise Failed(f"the integer tensor {name} differs between the models", hint)
    return [f"{printable(n)}: integers differ between the models, copied from the base" for n in sorted(differing)]


def _revived(kept: object) -> dict[str, Tensor]:
    if not isinstance(kept, dict):
        raise Failed("the journal holds something else than survey values", "remove the .partial folder")
    return {str(key): torch.tensor(value, dtype=torch.float64) for key, value in kept.items()}


def _notes(survey: OrderStatistic, values: dict[str, Tensor], job: Job) -> list[str]:
    told: list[str] = []
    if survey.notes is None:
        return told
    for key, value in values.items():
        for model, note in survey.notes(value).items():
            about = f"{job.models[model].label}{': ' + key if key else ''}"
            told.append(f"{printable(about)}: {note}")
    return told


class _Meter:
    """Counts the bytes read, for the progress bar."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._total, self._progress, self._done, self._lock = total, progress, 0, threading.Lock()

    def add(self, nbytes: int) -> None:
        """That many more bytes."""
        if self._progress is not None:
            with self._lock:
                self._done += nbytes
                self._progress(min(self._done, self._total), self._total)  # a rank that escapes is sought again
