"""`paramsmith evaluate`: the numbers of Python, as table, JSON and picture; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paramsmith.cli.app import cli
from paramsmith.hypernet.evaluation.evaluate import Budget, evaluate
from paramsmith.hypernet.training.learning import train
from paramsmith.hypernet.training.tasks import load_task
from tests.merge.folders import Done, failed

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = """
import torch
from torch import nn
from paramsmith.hypernet.protocols import Episode
from paramsmith.hypernet.targets.calling import Target
from paramsmith.hypernet.training.tasks import FunctionTask

with torch.device("meta"):
    target = Target.of(nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)), torch.zeros(1, 1))

def draw(rng, split):
    slope, x = torch.rand(1, generator=rng), torch.rand(40, 1, generator=rng)
    held = {"x": x, "y": slope * x}
    return Episode(target, {"vector": slope}, held, {} if broken else held)

broken = False

def task():
    return FunctionTask(draw, lambda run, batch: (run(batch["x"]) - batch["y"]).square().mean())

def without():
    global broken
    broken = True
    return task()
"""
QUICK = ["--steps", "0,4", "--rates", "0.03", "--targets", "1", "--seeds", "2", "--zoo", "1"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("evaluate")
    (folder / "tasks.py").write_text(TASKS)
    train("mip", load_task(f"{folder}/tasks.py:task"), folder / "gen", options={"hidden": [8]}, course={"steps": 5})
    return folder


def run(*words: object) -> Done:
    done = CliRunner().invoke(cli, ["evaluate", *map(str, words)])
    return Done(done.exit_code, done.stdout, done.stderr, 0)


def test_table_numbers_and_picture(here: Path) -> None:
    words = [here / "gen", "--tasks", here / "tasks.py:task", *QUICK, "-o", here / "found.json"]
    done = run(*words, "--plot", here / "found.svg")
    assert done.code == 0, done.err
    for word in ("random", "orthogonal", "mean", "nearest", "gen, asked wrong", "at step 0", "cost"):
        assert word in done.out
    assert "training on from: gen" in done.err
    found = json.loads((here / "found.json").read_text())
    names = [row["name"] for row in found["starts"]]
    assert names == ["random", "orthogonal", "mean", "nearest", "gen", "gen, asked wrong"]
    assert (here / "found.svg").read_bytes().startswith(b"<?xml")
    # the same as from Python, and the same again
    budget = Budget(marks=(0, 4), rates=(0.03,), targets=1, seeds=2, zoo=1)
    python = evaluate(load_task(f"{here}/tasks.py:task"), [], budget).to_json()["starts"]
    told = [{**row, "seconds": None} for row in found["starts"][:2]]
    assert told == json.loads(json.dumps([{**row, "seconds": None} for row in python[:2]]))  # type: ignore[index]
    again = run(*words, "--json", "--force")
    assert [row["curve"] for row in json.loads(again.out)["starts"]] == [row["curve"] for row in found["starts"]]


def test_without_a_generator_the_others_are_compared(here: Path) -> None:
    done = run("--tasks", here / "tasks.py:task", *QUICK, "--quiet")
    assert done.code == 0, done.err
    assert "orthogonal" in done.out
    assert not done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks", "tasks.py"], "'tasks.py' is no task"),
        (["--tasks", "{here}/tasks.py:without"], "no support to train on"),
        (["--tasks", "{here}/tasks.py:task", "--rates", "fast"], "'fast' is no list of numbers"),
        (["--tasks", "{here}/tasks.py:task", "--rates", "-1"], "a learning rate is a finite number above 0"),
        (["--tasks", "{here}/tasks.py:task", "--plot", "{here}/x.jpg"], "is no .jpg"),
        (["--tasks", "{here}/tasks.py:task", "-o", "{here}/tasks.py"], "exists already"),
        (["--tasks", "{here}/tasks.py:task", "-o", "{here}/no/where"], "is not an existing folder"),
        (["{here}/nothing", "--tasks", "{here}/tasks.py:task"], "nothing"),
    ],
)
def test_refused(here: Path, words: list[str], told: str) -> None:
    before = sorted(path.name for path in here.iterdir())
    failed(run(*QUICK, *(word.format(here=here) for word in words)), 2, told)
    assert sorted(path.name for path in here.iterdir()) == before
