"""The parts about data: a Fisher of the packaged BERT, and learning with eight task vectors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from tests.bench import runs
from tests.bench.child import Measured
from tests.bench.learning_child import Job
from tests.bench.parts import Bench, row_of
from tests.bench.report import WITHIN, Column, Table, within
from tests.bench.runs import side_by_side

SENTENCES, VECTORS = 256, 8
TIMES = 2.0  # of plain passes, for the estimators with one backward pass
ESTIMATORS = (("empirical", TIMES), ("sampled", TIMES), ("exact", None))
BATCHES = (8, 32)


def fisher(bench: Bench) -> Table:
    """A Fisher of the packaged BERT with five classes, against plain passes of the same sentences one by one."""
    columns = [Column("case", "estimator", "name"), Column("batch", "batch"), Column("seconds", "seconds", "seconds")]
    columns += [Column("loop", "passes", "seconds"), Column("ratio", "ratio", "times")]
    columns += [Column("target", "target", "target"), WITHIN, Column("cpu_ratio", "CPU ratio", "times")]
    columns += [Column("peak", "memory", "megabytes"), Column("loop_peak", "passes'", "megabytes")]
    count = 16 if bench.quick else SENTENCES
    table = Table("fisher", f"of {count} sentences, against as many forward and backward passes; one thread", columns)
    table.note("memory: the most that was held, model and all, above what Python and the libraries hold")
    with row_of(table, "fisher"), models(bench, count, 0) as (folder, _):
        cases = [("squares one by one", "squares", 1, None)]
        cases += [(f"{name}", name, batch, target) for batch in BATCHES for name, target in ESTIMATORS]
        for name, kind, batch, target in cases:
            with row_of(table, name):
                loop, taken = side_by_side(
                    [child(Job("passes", folder, count)), child(Job(kind, folder, count, batch))], bench.runs
                )
                ratio, most = taken.seconds / loop.seconds, bench.target(target)
                row = {"seconds": taken.seconds, "loop": loop.seconds, "ratio": ratio, "target": most}
                row |= {"within": within(ratio, most), "peak": taken.peak, "loop_peak": loop.peak}
                row |= {"cpu_ratio": taken.cpu / loop.cpu if taken.cpu and loop.cpu else None}
                table.add(case=name, batch=str(batch), **row)
    return table


def atlas(bench: Bench) -> Table:
    """Learning coefficients of eight task vectors, against the form that holds them all."""
    columns = [Column("case", "form", "name"), Column("seconds", "s/step", "seconds")]
    columns += [Column("ratio", "ratio", "times"), Column("peak", "memory", "megabytes")]
    columns += [Column("target", "target", "megabytes"), WITHIN]
    count, vectors = (16, 2) if bench.quick else (SENTENCES, VECTORS)
    table = Table("atlas", f"{vectors} task vectors of the packaged BERT, 16 sentences a step; one thread", columns)
    table.note("memory: as above; the target is what a plain step holds (model, gradients, activations) and one model")
    with row_of(table, "atlas"), models(bench, count, vectors) as (folder, size):
        steps = max(2, count // 16)
        jobs = [Job(kind, folder, steps, 16, vectors) for kind in ("plain", "held", "atlas")]
        plain, held, taken = side_by_side([child(job) for job in jobs], bench.runs)
        most = bench.target((plain.peak or 0) + size)
        for name, timing in (("a plain step", plain), ("functional_call, all held", held), ("learn_atlas", taken)):
            target = most if timing is taken else None
            row = {"seconds": timing.seconds, "ratio": timing.seconds / held.seconds, "peak": timing.peak}
            table.add(case=name, target=target, within=within(timing.peak, target), **row)
    return table


@contextmanager
def models(bench: Bench, sentences: int, vectors: int) -> Iterator[tuple[str, float]]:
    """A folder with the model, its noisy copies and the sentences, while it is needed; and the model's bytes."""
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        yield folder, child(Job("make", folder, sentences, models=vectors))().peak or 0


def child(job: Job) -> Callable[[], Measured]:
    """A job to time, in a process of its own."""
    return lambda: Measured(**json.loads(runs.child("tests.bench.learning_child", [], json.dumps(asdict(job)))))
