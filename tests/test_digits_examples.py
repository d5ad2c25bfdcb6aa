"""What the examples on digits say: the directions that papers report, and tasks that the command line can load."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paramsmith.merge.task import checked_batches, load_tasks

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ZOO = EXAMPLES / "digits_zoo.py"


def run(name: str, *arguments: str) -> str:
    told = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=True)
    return told.stdout


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("zoo")
    run("digits_zoo.py", "--quick", "--output", str(folder))
    return folder


def test_a_task_of_the_zoo_is_one_that_measuring_takes(zoo: Path) -> None:
    (task,) = load_tasks(f"{ZOO}:inverted", str(zoo / "inverted.safetensors"))
    (batch,) = checked_batches(task, limit=20)
    right = task.outputs(task.model, batch).argmax(1) == batch["labels"]
    assert right.float().mean() > 0.8  # of another task's digits the specialist reads a third


def test_tasks_to_learn_with_share_their_weights(zoo: Path) -> None:
    tasks = load_tasks(f"{ZOO}:make_tasks", str(zoo / "base.safetensors"))
    assert len(tasks) == 6
    assert len({id(task.model) for task in tasks}) == 1
    first, again = (torch.cat([batch["labels"] for batch in tasks[0].batches()]) for _ in range(2))
    assert torch.equal(first, again)
    assert first.max() < 5  # the task of few digits


@pytest.mark.slow
def test_the_zoo_is_the_same_every_time(zoo: Path, tmp_path: Path) -> None:
    run("digits_zoo.py", "--quick", "--output", str(tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in zoo.iterdir()
    }


@pytest.mark.slow
def test_data_helps_as_the_papers_say() -> None:
    told = run("data_aware_digits.py", "--quick")
    for order in ("fisher > linear", "regmean > fisher", "atlas > task_arithmetic"):
        assert f"{order}: holds" in told


@pytest.mark.slow
def test_few_shots_beat_none_and_a_task_is_forgotten() -> None:
    few, forgotten = run("few_shot_digits.py", "--quick").split("negation:")
    for line in re.findall(r"^\d+ .*", few, re.MULTILINE):
        _, zero, _, atlas, shares = map(float, line.split())
        assert zero < atlas < shares
    for line in re.findall(r"^(?:aside|inverted) .*", forgotten, re.MULTILINE):
        target, control, _, _, left, kept = map(float, line.split()[1:])
        assert left < target / 2
        assert kept > 0.9 * control
