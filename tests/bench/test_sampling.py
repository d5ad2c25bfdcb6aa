"""The part about samplers: its jobs do what they say, and its rows say what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.bench import runs, sampling
from tests.bench.child import Facts, Measured
from tests.bench.parts import Bench
from tests.bench.sampling import QUICK
from tests.bench.sampling_child import Job, do

TOOK = {"draw": (6.0, None), "draw_each": (4.0, None), "products": (2.0, None), "make": (0.0, 512 << 20)}
TOOK |= {"stream": (3.0, 300 << 20), "read": (1.5, None)}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that would have been run in processes of their own."""
    asked: list[Job] = []

    def child(module: str, arguments: list[str], text: str) -> str:
        job = Job(**json.loads(text))
        asked.append(job)
        seconds, peak = TOOK.get(job.kind, (0.25 if job.compile else 1.0, None))
        return json.dumps(asdict(Measured(seconds, seconds, peak)))

    monkeypatch.setattr(runs, "child", child)
    return asked


def bench(folder: Path, quick: bool = False, gpu: str | None = None) -> Bench:
    return Bench(folder, {}, folder, Facts("2", 2, gpu, None), runs=1, quick=quick)


def test_draws_are_held_against_their_products_and_a_zoo_against_its_files(tmp_path: Path, jobs: list[Job]) -> None:
    table = sampling.sampling(bench(tmp_path))
    assert not table.failed
    once, each, epoch = table.rows
    assert [(row["ratio"], row["within"]) for row in (once, each)] == [(3, False), (2, True)]
    assert (epoch["nbytes"], epoch["memory"], epoch["peak"]) == (512 << 20, 64 << 20, 300 << 20)
    assert (epoch["ratio"], epoch["held_within"]) == (2, False)
    assert {(job.tasks, job.samples) for job in jobs} == {(64, 16)}
    assert table.notes == ["steps of training on a GPU: left out, no CUDA device"]
    assert not list(tmp_path.iterdir()), "the zoo is removed"


def test_steps_are_timed_where_there_is_a_gpu(tmp_path: Path, jobs: list[Job]) -> None:
    *_, row = sampling.sampling(bench(tmp_path, gpu="a GPU")).rows
    assert (row["case"], row["seconds"], row["ratio"]) == ("a step of size small, compiled, beside not", 0.25, 0.25)
    assert {(job.device, job.size) for job in jobs if job.kind == "steps"} == {("cuda", "small")}


def test_a_quick_look_has_no_targets(tmp_path: Path, jobs: list[Job]) -> None:
    rows = sampling.sampling(bench(tmp_path, quick=True)).rows
    assert {row.get(name) for row in rows for name in ("target", "most", "within", "held_within")} == {None}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["draw", "draw_each", "products", pytest.param("steps", marks=pytest.mark.slow)])
def test_a_job_takes_time(kind: str, tmp_path: Path) -> None:
    assert do(replace(QUICK, kind=kind, folder=str(tmp_path))).seconds > 0


@pytest.mark.usefixtures("one_thread")
def test_a_zoo_is_larger_than_what_it_may_keep(tmp_path: Path) -> None:
    job = replace(QUICK, networks=3, memory=1 << 23, folder=str(tmp_path))
    nbytes = do(replace(job, kind="make")).peak
    assert nbytes is not None
    assert nbytes > job.memory
    assert do(replace(job, kind="read")).seconds > 0
    streamed = do(replace(job, kind="stream"))
    assert streamed.seconds > 0
    assert 0 < int(streamed.path) <= job.memory
