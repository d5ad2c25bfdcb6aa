"""The report is formed as it should be, on models so small that nothing it says about speed means anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.bench import __main__ as bench
from tests.bench import models, parts, processes, runs
from tests.bench.child import Facts, Measured, Spec, merge_here
from tests.bench.models import ROOT, Sizes

SMALL = Sizes(hidden=64, intermediate=128, layers=2, vocab=96, kv=64)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, made and merged in this process; a machine without a compiler."""

    def merge_apart(spec: Spec) -> Measured:
        taken = merge_here(spec)
        assert Path(spec.output, models.WEIGHTS).stat().st_size > 0
        runs.remove(Path(spec.output))
        return taken

    monkeypatch.setattr(models, "QUICK", SMALL)
    monkeypatch.setattr(models, "make_apart", models.make_llamas)
    monkeypatch.setattr(runs, "merge_apart", merge_apart)
    monkeypatch.setattr(runs, "machine_facts", lambda: Facts("2", 2, None, "no compiler in this test"))
    monkeypatch.setattr(parts, "TINY", 1000)


def report(folder: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Run the report; the rows of each part."""
    told = folder / "report.json"
    assert bench.main(["--quick", "--folder", str(folder), "--json", str(told), "--runs", "1", *arguments]) == 0
    kept = json.loads(told.read_text(encoding="utf-8"))
    assert kept["machine"]["cores"] >= 1
    assert not list(folder.rglob("results-*")), "outputs are removed"
    return {name: part["rows"] for name, part in kept["parts"].items()}


@pytest.mark.usefixtures("small")
def test_merges_are_held_against_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = report(tmp_path, "--only", "speed,cold,tiny")
    assert list(tables) == ["speed", "cold", "tiny"]
    assert [row["case"] for row in tables["speed"]] == [case.name for case in parts.SPEED]
    assert len(tables["cold"]) == len(tables["tiny"]) == 2
    for row in [*tables["speed"], *tables["cold"]]:
        assert row["ratio"] > 0
        assert row["ratio"] == pytest.approx(row["seconds"] / row["copy"])
    assert all(row["load"] >= 0 for rows in tables.values() for row in rows)
    assert {row["path"] for row in tables["speed"]} == {"eager"}
    out = capsys.readouterr().out
    for title in ("speed: ", "cold: ", "tiny: ", "torch 2", "load average", "eager only: no compiler in this test"):
        assert title in out


@pytest.mark.usefixtures("small")
def test_whole_processes_are_given_the_right_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def whole_process(command: Sequence[str | Path], output: Path | None = None) -> Measured:
        commands.append([str(word) for word in command])
        return Measured(2.0 if "mergekit-yaml" in str(command[0]) else 1.0, 1.0, 500_000_000)

    (tmp_path / "mergekit-yaml").touch()
    monkeypatch.setattr(runs, "whole_process", whole_process)
    tables = report(tmp_path, "--only", "mergekit,memory,startup", "--mergekit", str(tmp_path / "python"))
    assert [row["case"] for row in tables["mergekit"]] == list(processes.RECIPES)
    assert {row["ratio"] for row in tables["mergekit"]} == {2.0}
    assert len(tables["memory"]) == 2 * len(parts.MEMORY)
    assert [row["seconds"] for row in tables["startup"]] == [1.0, 1.0]
    small = [command for command in commands if "--memory" in command]
    assert len(small) == len(parts.MEMORY)
    assert all(command[-4:] == ["--memory", "256MB", "--compile", "never"] for command in small)


def test_a_merge_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The real thing, once: nothing of it is replaced."""
    inputs = models.tiny_models(tmp_path, 3)
    spec = Spec([str(inputs["a"]), str(inputs["b"])], str(tmp_path / "out"), "linear", parameters={"weight": [1, 2]})
    taken = runs.merge_apart(spec)
    assert taken.seconds > 0
    assert taken.path == "eager"
    assert taken.peak is not None
    assert taken.peak > 50e6, "torch alone is more"
    assert not Path(spec.output).exists()


def test_whole_processes_are_timed_and_their_last_words_kept() -> None:
    taken = runs.whole_process([sys.executable, "-c", "held = b'x' * (1 << 27)"])
    assert taken.seconds > 0
    assert taken.peak is not None
    assert taken.peak > 1 << 27
    with pytest.raises(runs.RunFailed, match="exit status 3: so; be it"):
        runs.whole_process([sys.executable, "-c", "print('so'); print('be it'); raise SystemExit(3)"])


def test_the_command_starts_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tests.bench", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--mergekit PYTHON" in done.stdout
    assert " torch\n" not in done.stderr, "what this process holds counts as its children's peak"


def test_a_failed_run_is_reported_and_the_report_fails(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def merge_apart(spec: Spec) -> Measured:
        raise runs.RunFailed("exit status 1: the child's last words")

    monkeypatch.setattr(runs, "merge_apart", merge_apart)
    assert bench.main(["--quick", "--folder", str(tmp_path), "--runs", "1", "--only", "tiny"]) == 1
    assert "FAILED: exit status 1: the child's last words" in capsys.readouterr().out


def test_the_best_of_several_runs_is_told_and_the_most_memory() -> None:
    turns = iter([Measured(9.0, 9.0, 9), Measured(3.0, 2.0, 5), Measured(2.0, 4.0, 7)])
    (best,) = runs.side_by_side([lambda: next(turns)], 2, uncounted=[0])
    assert (best.seconds, best.cpu, best.peak) == (2.0, 2.0, 7)


def test_fine_tunes_lie_close_to_their_base(tmp_path: Path) -> None:
    models.make_llamas(tmp_path, SMALL)
    base, tuned = (load_file(tmp_path / name / models.WEIGHTS) for name in ("base", "c"))
    apart = (tuned["lm_head.weight"].float() - base["lm_head.weight"].float()).std().item()
    assert apart == pytest.approx(models.NOISE, rel=0.1)
    assert base["lm_head.weight"].float().std().item() == pytest.approx(models.BASE, rel=0.1)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    models.make_llamas(tmp_path, SMALL)
    assert list(models.llamas(tmp_path, SMALL)) == list(models.NAMES)
    with pytest.raises(models.Unusable, match="not the model wanted"):
        models.llamas(tmp_path, models.QUICK)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    with pytest.raises(models.Unusable, match="has only base, b, c"):
        models.llamas(tmp_path, SMALL)
