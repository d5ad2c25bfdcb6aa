"""Methods that need whole matrices: one tensor a worker at a time, with its Grams, and one result at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from paramsmith.blocks import Block, Span
from paramsmith.dtypes import torch_dtype
from paramsmith.params import Resolved
from paramsmith.stream import Scratch, read_block, run_workers
from paramsmith.surveys import Seen

from .health import Health
from .job import Job, MergeTask
from .passes import Runner

Write = Callable[[Block[MergeTask], Tensor, Scratch], None]


def run_matrices(runner: Runner, health: Health, finished: Callable[[Block[MergeTask]], bool], write: Write) -> None:
    """Merge every matrix of the job that is not finished."""

    def todo() -> Iterator[Block[MergeTask]]:
        # the largest first: the last worker to finish then finishes early
        for task in sorted(runner.job.matrices, key=lambda task: -task.count):
            block = Block((Span(task, 0, task.count, 0),), task.count)
            if finished(block):
                health.skip(block)
                runner.advance(matrix_bytes(task))
            else:
                yield block

    def work(block: Block[MergeTask], scratch: Scratch) -> None:
        raw = read_block(block, scratch, runner.wide)  # (sources, n)
        out = _merged(runner, block.task, raw, _grams(block.task, scratch))
        health.see(block, out, float(raw.to(runner.wide).abs().sum(0).amax()), scratch)
        write(block, out, scratch)
        runner.advance(matrix_bytes(block.task))

    run_workers(todo(), work, runner.setup.threads, runner.setup.device)


def matrix_bytes(task: MergeTask) -> int:
    """Bytes read for one matrix."""
    sources = sum(task.count * part.dtype.itemsize for part in task.sources)
    return sources + 4 * math.prod(task.gram_shape) * len(task.grams)


def matrix_memory(job: Job) -> int:
    """Bytes that a worker holds for the largest matrix: what is read, its float32, the solve's float64."""
    most = 0
    for task in job.matrices:
        rows = len(task.sources) - job.deltas
        values = task.count * (sum(p.dtype.itemsize for p in task.sources) + 4 * (2 * rows + 2) + 8 * 4)
        most = max(most, values + math.prod(task.gram_shape) * (4 * rows + 8 * 5))
    return most


def _merged(runner: Runner, task: MergeTask, raw: Tensor, grams: Tensor | None) -> Tensor:
    """The method on one matrix, rounded once: (n)."""
    shape = task.spec.shape
    wide = raw.to(runner.wide)
    base, rows = (wide[0], wide[1:] - wide[0]) if runner.job.deltas else (None, wide)
    matrices = rows.view(len(rows), shape[0], -1)  # (models, out, in)
    if task.transposed:
        matrices = matrices.mT
    p: Resolved[object] = runner.parameters(task)  # type: ignore[type-var]
    made = runner.job.method.function(matrices, Seen({}, None, grams), p)  # (out, in)
    made = (made.mT if task.transposed else made).reshape(-1).to(runner.wide)
    value = made if base is None else base - (0 - made)
    return value.to(torch_dtype(task.spec.dtype))


def _grams(task: MergeTask, scratch: Scratch) -> Tensor | None:
    """The Grams of one tensor's inputs: (models, in, in) or (models, groups, in, in), float32."""
    if not task.grams:
        return None
    shape = task.gram_shape
    held = scratch.take("grams", (len(task.grams), *shape), torch.float32, host=True)
    data, size = scratch.bytes_of("grams"), math.prod(shape) * 4
    for row, gram in enumerate(task.grams):
        gram.read(0, data[row * size : (row + 1) * size])
    return held if scratch.device.type == "cpu" else held.to(scratch.device)
