"""`paramsmith evaluate`: the numbers of Python, as table, JSON and picture; and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from paramsmith.cli.app import cli
from paramsmith.errors import GenerateWarning
from paramsmith.hypernet.evaluation.evaluate import evaluate
from paramsmith.hypernet.evaluation.results import Budget
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.training.learning import train
from paramsmith.hypernet.training.tasks import load_task
from paramsmith.hypernet.zoos.build import build
from paramsmith.hypernet.zoos.zoo import Zoo
from tests.hypernet.test_evaluate_zoo import Clusters
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

def measured(loss, score=None):
    judge = score and (lambda run, batch: score(run(batch["x"])))
    return FunctionTask(draw, lambda run, batch: loss(run(batch["x"])), judge)

def raises():
    return measured(lambda y: 1 / 0)

def exits():
    return measured(lambda y: exit(0))

def text():
    return measured(lambda y: "low")

def free():
    return measured(lambda y: torch.zeros(()), lambda y: y.mean())

def many_scores():
    return measured(lambda y: y.square().mean(), lambda y: y)

def nan():
    return measured(lambda y: y.square().mean() * float("nan"))

def late():
    def drawn(rng, split):
        return draw(rng, split) if split == "train" else 5
    return FunctionTask(drawn, task().measure)

def other():
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    return FunctionTask(lambda rng, split: Episode(Target.of(net), *draw_parts(rng)), task().measure)

def draw_parts(rng):
    found = draw(rng, "test")
    return found.condition, found.query, found.support

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x):
        return self.a(x) if x.sum() > 5 else self.b(x)

def branches():
    Target.of(Branches(), torch.zeros(1, 1))
    return task()
"""
QUICK = ["--steps", "0,4", "--rates", "0.03", "--targets", "1", "--seeds", "2", "--networks", "1"]


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
    budget = Budget(marks=(0, 4), rates=(0.03,), targets=1, seeds=2, networks=1)
    python = evaluate(load_task(f"{here}/tasks.py:task"), [], budget).to_json()["starts"]
    told = [{**row, "seconds": None, "drawing": None} for row in found["starts"][:2]]
    assert told == json.loads(json.dumps([{**row, "seconds": None, "drawing": None} for row in python[:2]]))  # type: ignore[index]
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
        (["--tasks", "{here}/tasks.py:task", "--rates", "-1"], "rates: Input should be greater than 0, found -1.0"),
        (["--tasks", "{here}/tasks.py:task", "--rates", "1e300"], "rates: Input should be less than"),
        (["--tasks", "{here}/tasks.py:task", "--threshold", "nan"], "threshold: Input should be a finite number"),
        (["--tasks", "{here}/tasks.py:task", "--steps", "1000000000000"], "marks: Input should be less than"),
        (["--tasks", "{here}/tasks.py:task", "--seed", str(2**64)], "seed: Input should be less than"),
        (["--tasks", "{here}/tasks.py:task", "-o", "{here}/tasks.py", "--force"], "tasks.py is an input"),
        (["--tasks", "{here}/tasks.py:task", "{here}/gen", "-o", "{here}/gen/x"], "lies in the input"),
        (["--tasks", "{here}/tasks.py:task", "-o", "{here}", "--force"], "is a folder"),
        (
            ["--tasks", "{here}/tasks.py:task", "-o", "{here}/x.svg", "--plot", "{here}/x.svg"],
            "go to the same file",
        ),
        (["--tasks", "{here}/tasks.py:late"], "an episode of the task is int"),
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


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("raises", "the task's loss, run for several networks by torch.vmap, raised ZeroDivisionError"),
        ("exits", "the task's loss, run for several networks by torch.vmap, raised SystemExit: 0"),
        ("text", "the task's loss is str"),
        ("free", "the task's loss does not depend on the weights"),
        ("many_scores", "the task's score is a tensor of [8, 1]"),
    ],
)
def test_code_of_the_task_that_fails(here: Path, task: str, told: str) -> None:
    failed(run("--tasks", here / f"tasks.py:{task}", *QUICK, "-q"), 1, told)


def test_scores_that_are_not_finite(here: Path) -> None:
    done = run(here / "gen", "--tasks", here / "tasks.py:nan", *QUICK, "-q", "-o", here / "nan.json")
    assert done.code == 0, done.err
    assert "gen is not to be compared with random at step 0" in done.out
    assert json.loads((here / "nan.json").read_text())["starts"][0]["best"] is None


def test_a_generator_of_another_target_is_told_of_at_once(here: Path) -> None:
    done = run(here / "gen", "--tasks", here / "tasks.py:other", *QUICK)
    failed(done, 2, "made for another target")
    assert "training on from" not in done.err


def test_generators_of_the_same_name_are_told_apart(here: Path) -> None:
    done = run(here / "gen", here / "gen", "--tasks", here / "tasks.py:task", *QUICK, "-q")
    assert done.code == 0, done.err
    assert "gen-2, asked wrong" in done.out


def test_what_is_said_of_a_target(here: Path) -> None:
    done = run("--tasks", here / "tasks.py:branches", *QUICK, "-q")
    assert done.code == 0, done.err
    assert done.err.startswith("warning: the graph of Branches is a chain of its tensors")
    assert done.err.count("\n") == 1


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of three clusters: their task, a zoo of them, and a generator."""
    folder: Path = tmp_path_factory.mktemp("heads")
    words = "from tests.hypernet.test_evaluate_zoo import Clusters\n\ndef task():\n    return Clusters()\n"
    (folder / "clusters.py").write_text(words)
    build(Clusters(), 30, folder / "zoo", steps=40, lr=0.05, test=4)
    made = Generator.build("noise_copy", Zoo.open(folder / "zoo").site)
    with pytest.warns(GenerateWarning, match="30 networks"):
        made.fit(Zoo.open(folder / "zoo"))
    made.save(folder / "gen")
    return folder


def test_beside_a_zoo_with_a_report(heads: Path) -> None:
    words = [heads / "gen", "--tasks", heads / "clusters.py:task", "--zoo", heads / "zoo", "--targets", "2"]
    words += ["--steps", "0,2", "--rates", "0.03", "--seeds", "2", "--best-of", "3", "--mean-of", "2"]
    done = run(*words, "--report", heads / "report.html", "-o", heads / "found.json", "-q")
    assert done.code == 0, done.err
    assert done.err.count("30 networks") == 1
    told = json.loads((heads / "found.json").read_text())
    names = [row["name"] for row in told["starts"] if row["of"] is None]
    assert names[2:] == [
        *("mean", "nearest", "noise_copy", "gaussian", "prototype", "ridge", "best of the zoo"),
        *("gen", "gen, best of 3", "gen, mean of 2"),
    ]
    controls = {row["name"]: row["of"] for row in told["starts"] if row["of"] is not None}
    assert controls == {
        "gen, 3 chosen by what is reported": "gen, best of 3",
        "gen, asked wrong": "gen",
        "gen, classes rotated": "gen",
    }
    assert told["zoo"] == {"networks": 30, "tasks": told["zoo"]["tasks"], "held out": 4, "judged by": 2}
    assert set(told["copying"]) == {"gen", "gen, best of 3", "gen, mean of 2"}
    assert told["copying"]["gen"]["samples"] == 4
    page = (heads / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "gen, best of 3" in page
    assert str(heads) not in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--report", "report.txt"], "report.txt: a report is an .html page"),
        (["--zoo", "nowhere"], "nowhere: does not exist"),
        (["--best-of", "1"], "1 is not in the range"),
    ],
)
def test_refused_beside_a_zoo(heads: Path, words: list[str], told: str) -> None:
    failed(run(heads / "gen", "--tasks", heads / "clusters.py:task", *words), 2, told)
    assert not Path("report.txt").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [("pipe", "is no ordinary file"), ("x" * 300, "is no name for a file")],
)
def test_what_is_no_file_is_never_replaced(here: Path, tmp_path: Path, name: str, told: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for option in ("-o", "--report", "--plot"):
        done = run("--tasks", "tasks.py:task", option, f"{tmp_path}/{name}", "--force")
        failed(done, 2, told)
    assert [path.name for path in tmp_path.iterdir() if path.is_fifo()] == ["pipe"]
