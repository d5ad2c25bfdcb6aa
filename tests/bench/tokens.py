"""The part about tokens: what it takes to cut a network into tokens, and to put it together, beside a copy of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from tests.bench import runs
from tests.bench.child import Measured
from tests.bench.parts import Bench, row_of
from tests.bench.report import WITHIN, Column, Table, within
from tests.bench.runs import side_by_side
from tests.bench.tokens_child import Job

MOST = 2.0  # times the copy
SIZES = ("ResNet-18", "quarter billion")  # of a billion, tokens and tensors together would take 12 GB
LAYOUTS = ("row", "tensor", "flat", "patch")


def tokens(bench: Bench) -> Table:
    """Tensors to tokens and back in memory, with the normaliser pow2, fp32."""
    columns = [Column("case", "network, layout", "name"), Column("seconds", "to tokens", "seconds")]
    columns += [Column("back", "back", "seconds"), Column("copy", "copy", "seconds")]
    columns += [Column("ratio", "to/copy", "times"), Column("back_ratio", "back/copy", "times")]
    table = Table("tokens", "one network in memory, fp32", [*columns, Column("target", "target", "target"), WITHIN])
    for size in ("tiny",) if bench.quick else SIZES:
        for layout in LAYOUTS:
            with row_of(table, f"{size}, {layout}"):
                jobs = [child(Job(kind, size, layout)) for kind in ("tokens", "tensors", "copy")]
                cut, back, copied = side_by_side(jobs, bench.runs)
                ratios, target = [taken.seconds / copied.seconds for taken in (cut, back)], bench.target(MOST)
                table.add(
                    case=f"{size}, {layout}",
                    seconds=cut.seconds,
                    back=back.seconds,
                    copy=copied.seconds,
                    ratio=ratios[0],
                    back_ratio=ratios[1],
                    target=target,
                    within=within(max(ratios), target),
                )
    return table


def child(job: Job) -> Callable[[], Measured]:
    """A job to time, in a process of its own."""
    return lambda: Measured(**json.loads(runs.child("tests.bench.tokens_child", [], json.dumps(asdict(job)))))
