"""The part about samplers: heads drawn for many tasks, a zoo larger than its memory read once, steps on a GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace

from tests.bench import runs
from tests.bench.child import Measured
from tests.bench.parts import Bench, row_of
from tests.bench.report import WITHIN, Column, Row, Table, within
from tests.bench.runs import Timing, side_by_side
from tests.bench.sampling_child import MATRICES, SIDE, TOGETHER, Job

SECONDS = 5.0  # for 16 heads for each of 64 tasks
BATCHES = 4  # that may be held besides a zoo's memory: the last, the next, and what the allocator keeps
QUICK = Job("draw", tasks=2, samples=2, memory=1 << 24, networks=12, size="tiny", steps=4)
FULL = Job("draw")


def sampling(bench: Bench) -> Table:
    """What drawing takes, beside its multiply-adds; what a zoo holds, and takes, beside reading its files."""
    columns = [Column("case", "case", "name"), Column("seconds", "seconds", "seconds")]
    columns += [Column("beside", "beside", "seconds"), Column("ratio", "ratio", "times")]
    columns += [Column("cpu", "CPU s", "seconds"), Column("beside_cpu", "beside's", "seconds")]
    columns += [Column("target", "target", "seconds"), WITHIN, Column("nbytes", "zoo", "megabytes")]
    columns += [Column("memory", "budget", "megabytes"), Column("peak", "held", "megabytes")]
    columns += [Column("most", "target", "megabytes"), Column("held_within", "within")]
    table = Table("sampling", "flow; held: at most above what was held before", columns)
    size = QUICK if bench.quick else FULL
    drawing(table, bench, size)
    with row_of(table, "zoo"), tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        streaming(table, bench, replace(size, folder=folder))
    if bench.facts.gpu is None:
        table.note("steps of training on a GPU: left out, no CUDA device")
    else:
        with row_of(table, "steps"), tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
            training(table, bench, replace(size, kind="steps", folder=folder, device="cuda"))
    return table


def drawing(table: Table, bench: Bench, size: Job) -> None:
    """Heads of 5 classes over 96 features; one thread, as bytes are the same whatever there is.

    The yardstick is the multiply-adds of the draw as plain matrix products: what no way of drawing could go below.
    """
    ways = {"draw": "all at once", "draw_each": "a call a task"}
    with row_of(table, "heads"):
        jobs = [child(replace(size, kind=kind)) for kind in (*ways, "products")]
        *drawn, bound = side_by_side(jobs, bench.runs)
        target = bench.target(SECONDS)
        for way, taken in zip(ways.values(), drawn, strict=True):
            name = f"{size.tasks} x {size.samples} heads, {way}"
            table.add(case=name, target=target, within=within(taken.seconds, target), **pair(taken, bound))


def streaming(table: Table, bench: Bench, size: Job) -> None:
    """An epoch over a zoo, beside reading its files into one buffer."""
    nbytes = child(replace(size, kind="make"))().peak
    jobs = [child(replace(size, kind=kind)) for kind in ("stream", "read")]
    taken, plain = side_by_side(jobs, bench.runs)
    most = bench.target(size.memory + BATCHES * TOGETHER * MATRICES * SIDE * SIDE * 4)
    held = {"nbytes": nbytes, "memory": size.memory, "peak": taken.peak, "most": most}
    name = f"an epoch over {size.networks} networks"
    table.add(case=name, held_within=within(taken.peak, most), **pair(taken, plain), **held)


def training(table: Table, bench: Bench, size: Job) -> None:
    """A step of training in bfloat16, compiled and not."""
    fast, slow = side_by_side([child(replace(size, compile=made)) for made in (True, False)], bench.runs)
    table.add(case=f"a step of size {size.size}, compiled, beside not", **pair(fast, slow))


def pair(taken: Timing, beside: Timing) -> Row:
    """What a row says of a job, and of what it is held against."""
    row: Row = {"seconds": taken.seconds, "beside": beside.seconds, "ratio": taken.seconds / beside.seconds}
    return {**row, "cpu": taken.cpu, "beside_cpu": beside.cpu}


def child(job: Job) -> Callable[[], Measured]:
    """A job to time, in a process of its own."""
    return lambda: Measured(**json.loads(runs.child("tests.bench.sampling_child", [], json.dumps(asdict(job)))))
