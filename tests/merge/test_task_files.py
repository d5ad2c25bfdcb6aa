"""Tasks in a file of the user's: what it may be made of, and what is refused with a sentence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.learn.btm import learn_btm
from paramsmith.merge.learn.feeds import check_classes, look_through
from paramsmith.merge.learn.objectives import accuracy
from paramsmith.merge.task import (
    IGNORED,
    Batch,
    ModelTask,
    checked_batches,
    code_digest,
    example_losses,
    load_tasks,
)
from paramsmith.userfile import call_user

WORKING = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from neighbour_of_the_task import WIDTH
from paramsmith.merge.task import code_digest, ModelTask

@dataclass
class Size:
    width: int

def make(checkpoint):
    return ModelTask(nn.Linear(Size(WIDTH).width, 2), lambda: [], lambda model, batch: model(batch["x"]))

def other(**changed):
    parts = {"model": nn.Linear(2, 2), "data": list, "forward": print, **changed}
    return lambda checkpoint: ModelTask(**parts)

no_model, no_names = other(model=None), other(names=None)
no_data, unlikely = other(likelihood="softmax"), other(likelihood=[])

class Raising:
    likelihood, names, batches, outputs = "categorical", {}, list, print

    @property
    def model(self):
        raise RuntimeError("no such network")

raising = lambda checkpoint: Raising()

def leaves(checkpoint):
    raise SystemExit(0)
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A task file and what it imports."""
    (tmp_path / "neighbour_of_the_task.py").write_text("WIDTH = 3\n")
    (tmp_path / "task.py").write_text(WORKING)
    return tmp_path / "task.py"


def test_a_file_has_dataclasses_and_imports_its_neighbours(written: Path) -> None:
    (task,) = load_tasks(f"{written}:make", "a")
    assert [list(p.shape) for p in task.model.parameters()] == [[2, 3], [2]]


@pytest.mark.parametrize(
    ("name", "member"),
    [("no_model", "model"), ("no_names", "names"), ("no_data", "likelihood"), ("unlikely", "likelihood")],
)
def test_members_are_looked_at(written: Path, name: str, member: str) -> None:
    with pytest.raises(InvalidInput, match=f"the {member} of the task is"):
        load_tasks(f"{written}:{name}", "a")


def test_code_that_leaves_the_program_has_failed(written: Path) -> None:
    with pytest.raises(Failed, match="raised SystemExit: 0"):
        load_tasks(f"{written}:leaves", "a")
    with pytest.raises(Failed, match="raised RuntimeError: no such network"):
        load_tasks(f"{written}:raising", "a")
    with pytest.raises(KeyboardInterrupt):
        call_user(_interrupted, "here")


def _interrupted() -> None:
    raise KeyboardInterrupt


def made(outputs: Tensor, labels: Tensor) -> ModelTask:
    batches = [{"x": outputs, "labels": labels}]
    return ModelTask(nn.Identity(), lambda: batches, lambda model, batch: model(batch["x"]))


def test_labels_and_logits_go_together() -> None:
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 2])
    torch.testing.assert_close(
        example_losses(logits, {"labels": labels.int()}, "categorical"), torch.full((4,), math.log(3))
    )
    for wrong in (labels[:, None].expand(4, 5), labels[:3]):
        with pytest.raises(InvalidInput, match="the labels are"):
            example_losses(logits, {"labels": wrong}, "categorical")
        with pytest.raises(InvalidInput, match=r"the labels are|not all its tensors"):
            accuracy(made(logits, wrong))
    with pytest.raises(InvalidInput, match="not integers"):
        example_losses(logits, {"labels": labels.to(torch.complex64)}, "categorical")
    with pytest.raises(InvalidInput, match="the outputs"):
        example_losses(logits, {"labels": torch.zeros(4, 2)}, "regression")


def test_accuracy_of_nan_is_none() -> None:
    labels = torch.zeros(2, dtype=torch.long)  # which the largest of three NaN would be
    assert math.isnan(accuracy(made(torch.full((2, 3), math.nan), labels)))


def test_labels_none_of_which_counts() -> None:
    task = made(torch.zeros(2, 3), torch.full((2,), IGNORED))
    with pytest.raises(InvalidInput, match="no label of task 1 counts"):
        check_classes([look_through(task)], [task])


@pytest.mark.parametrize("batch", [{"x": torch.eye(2).to_sparse()}, {"x": torch.eye(2), 5: torch.eye(2)}])
def test_odd_batches_are_refused(batch: Batch) -> None:
    task = ModelTask(nn.Identity(), lambda: [batch], lambda model, batch: model(batch["x"]))
    with pytest.raises(InvalidInput, match="batch 0"):
        list(checked_batches(task))


def test_posteriors_are_of_texts(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
    task = made(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(InvalidInput, match="outputs"):
        learn_btm([task], [tmp_path / "a.safetensors"], tmp_path / "c.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_text_of_the_file_is_other_code(tmp_path: Path) -> None:
    """So that what was interrupted is not gone on with by a task that computes something else."""
    file, model = tmp_path / "task.py", tmp_path / "model.safetensors"
    text = (
        "import torch\nfrom paramsmith.merge.task import ModelTask\ndef make(path):\n"
        "    return ModelTask(torch.nn.Linear(2, 2), lambda: [], lambda model, batch: model(batch['x']))\n"
    )
    digests = []
    for version in (text, text, text.replace("batch['x'])", "batch['x']) * 2")):
        file.write_text(version)
        (task,) = load_tasks(f"{file}:make", str(model))
        digests.append(code_digest(task))
    assert digests[0] == digests[1] != digests[2]
