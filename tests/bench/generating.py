"""The part about generating: shards against their copy, factors cut before they are made, targets run as one batch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict

from tests.bench import runs
from tests.bench.child import Measured
from tests.bench.generating_child import Job
from tests.bench.parts import Bench, row_of
from tests.bench.report import WITHIN, Column, Table, within
from tests.bench.runs import side_by_side

WRITING, BATCHED = 2.0, 5.0  # times the copy, at most; times as fast as the loop, at least


def generating(bench: Bench) -> Table:
    """What logah T takes to generate, and what saves time there."""
    columns = [Column("case", "case", "name"), Column("seconds", "seconds", "seconds")]
    columns += [Column("beside", "beside", "seconds"), Column("ratio", "ratio", "times")]
    columns += [Column("target", "target", "target"), WITHIN]
    columns += [Column("peak", "memory", "megabytes"), Column("beside_peak", "beside", "megabytes")]
    table = Table("generating", "logah T; memory: what is held at most above what was held before", columns)
    with row_of(table, "generating"), tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        child(Job("train", folder))()
        for size in ("tiny",) if bench.quick else ("124M", "774M"):
            with row_of(table, size):
                child(Job("generate", folder, size))()
                beside(table, bench, f"GPT-2 of {size}, beside a copy", folder, "generate", "copy", WRITING, size)
        beside(table, bench, "a matrix, beside all of its factors", folder, "sliced", "full", None)
        beside(table, bench, "256 targets at once, beside one by one", folder, "vmapped", "looped", 1 / BATCHED)
    if bench.facts.gpu:
        training(table, bench)
    return table


def training(table: Table, bench: Bench) -> None:
    """Steps of training on a GPU, four ViTs a step in bfloat16, compiled and not."""
    with row_of(table, "steps"), tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        compiled, plain = (Job("steps", folder, device="cuda", compile=made) for made in (True, False))
        fast, slow = side_by_side([child(compiled), child(plain)], bench.runs)
        table.add(
            case="a step, compiled, beside not",
            seconds=fast.seconds,
            beside=slow.seconds,
            ratio=fast.seconds / slow.seconds,
        )


def beside(
    table: Table, bench: Bench, name: str, folder: str, kind: str, other: str, most: float | None, size: str = ""
) -> None:
    """A row: one job, and what it is held against."""
    with row_of(table, name):
        taken, held = side_by_side([child(Job(kind, folder, size)), child(Job(other, folder, size))], bench.runs)
        ratio, target = taken.seconds / held.seconds, bench.target(most)
        row = {"seconds": taken.seconds, "beside": held.seconds, "ratio": ratio, "target": target}
        table.add(case=name, within=within(ratio, target), peak=taken.peak, beside_peak=held.peak, **row)


def child(job: Job) -> Callable[[], Measured]:
    """A job to time, in a process of its own."""
    return lambda: Measured(**json.loads(runs.child("tests.bench.generating_child", [], json.dumps(asdict(job)))))
