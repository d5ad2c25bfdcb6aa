"""Losses, feeds, pseudo-labels and the rules that choose an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.learn import pseudo_labels
from paramsmith.merge.learn.feeds import Feed, look_through
from paramsmith.merge.learn.objectives import accuracy, entropy, score, supervised
from paramsmith.merge.learn.pseudo_labels import PseudoLabels, confident_labels, trusted_labels
from paramsmith.merge.learn.selection import BestMean, LowestTarget
from paramsmith.merge.task import IGNORED, Batch, ModelTask
from tests.merge.learn.toys import data, on_x, task_of


class Scored(nn.Module):
    """Gives the inputs back, scaled by its one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def scored(outputs: Tensor, labels: Tensor, **more: object) -> ModelTask:
    return ModelTask(Scored(), lambda: [{"x": outputs, "labels": labels}], on_x, **more)  # type: ignore[arg-type]


def test_supervised_is_the_mean_over_labels_that_count() -> None:
    outputs, labels = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    labels[0, :3] = labels[2] = IGNORED
    wanted = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    batch = {"x": outputs, "labels": labels}
    torch.testing.assert_close(supervised(outputs, batch, scored(outputs, labels)), wanted)
    wanted_values = torch.randn(4, 2)
    task = scored(outputs, labels, likelihood="regression")
    found = supervised(torch.zeros(4, 2), {"labels": wanted_values}, task)
    torch.testing.assert_close(found, 0.5 * wanted_values.square().sum(1).mean())


def test_entropy_counts_reliable_examples_only() -> None:
    """Below 0.4 ln C; the unreliable have no slope either."""
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 9.0, 0.0]], requires_grad=True)
    each = torch.distributions.Categorical(logits=logits.detach()).entropy()
    reliable = each < 0.4 * math.log(3)
    assert reliable.tolist() == [True, False, True]
    torch.testing.assert_close(entropy(logits.detach()), each.mean())
    found = entropy(logits, 0.4)
    torch.testing.assert_close(found.detach(), each[reliable].mean())
    found.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).bool().tolist() == [True, False, True]


def test_accuracy_counts_labels_that_are_known() -> None:
    outputs = torch.eye(4).expand(2, 4, 4)
    labels = torch.tensor([[0, 1, 2, 0], [0, IGNORED, IGNORED, 3]])
    assert accuracy(scored(outputs, labels)) == 5 / 6
    assert accuracy(scored(outputs, labels), lambda batch: -batch["x"]) == 1 / 6
    with pytest.raises(InvalidInput, match="no example has a label"):
        accuracy(scored(outputs, torch.full((2, 4), IGNORED)))
    with pytest.raises(InvalidInput, match="label 4 is outside"):
        accuracy(scored(outputs, labels.clamp_min(0) + 1))
    with pytest.raises(InvalidInput, match="accuracy is of classes"):
        accuracy(scored(outputs, labels, likelihood="regression"))
    assert score(scored(torch.zeros(2, 3), torch.ones(2, 3), likelihood="regression")) == -1.5


def test_accuracy_leaves_the_model_training() -> None:
    task = task_of(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)).train(), *data(1))
    assert accuracy(task) == accuracy(task)  # nothing is dropped
    assert task.model.training


@given(batches=st.integers(1, 5), steps=st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_a_feed_gives_the_batch_of_any_step(batches: int, steps: list[int]) -> None:
    rows = [{"x": torch.full((2, 1), float(number))} for number in range(batches)]
    feed = Feed(ModelTask(Scored(), lambda: rows, on_x), batches)
    assert [int(feed.at(step)["x"][0]) for step in steps] == [step % batches for step in steps]


def test_data_that_becomes_shorter_is_told() -> None:
    rows = [{"x": torch.zeros(2, 1)} for _ in range(3)]
    task = ModelTask(Scored(), lambda: list(rows), on_x)
    feed = Feed(task, look_through(task).batches)
    rows.pop()
    with pytest.raises(Failed, match="become shorter"):
        feed.at(2)


def test_trusted_are_the_surest_of_each_class() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.55, 0.45], [0.5, 0.5]])
    # class 1 is sure of nothing, and takes its three best all the same; 4 and 5 are not among those of class 0
    assert trusted_labels(scores).tolist() == [0, 0, 0, 1, 1, 1]
    assert trusted_labels(scores[:3]).tolist() == [0, IGNORED, 1]
    both = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    assert trusted_labels(both).tolist() == [0, 2, IGNORED]  # the first is the best of two classes
    many = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert int((trusted_labels(many) != IGNORED).sum()) == 200


def test_confidence_is_of_the_root() -> None:
    """p^0.5, normalised: .99 becomes .909 and .98 becomes .875."""
    outputs = torch.tensor([[0.99, 0.01], [0.02, 0.98], [0.5, 0.5]]).log()
    assert confident_labels(outputs, 0.9).tolist() == [0, IGNORED, IGNORED]
    assert confident_labels(outputs, 0.87).tolist() == [0, 1, IGNORED]
    assert confident_labels(torch.tensor([[80.0, 0.0]]), 1.0).tolist() == [IGNORED]


class Noted(nn.Module):
    """Remembers the rows it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shown: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x[:, 0].int().tolist())
        sure = torch.stack([x[:, 1], -x[:, 1]], 1)
        return self.scale * sure


def test_a_quarter_of_each_batch_is_trusted_and_the_loss_is_of_the_strong_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row i is plain i or, strong, 100 + i; the surest of either class come first and last."""
    monkeypatch.setattr(pseudo_labels, "MOST_TRUSTED", 2)
    parts = ((9.0, 2), (0.02, 3), (4.0, 3), (-4.0, 6), (-9.0, 2))  # one class is sure above 0, the other below
    sureness = torch.cat([torch.full((count,), value) for value, count in parts])
    plain = torch.stack([torch.arange(16).float(), sureness], 1)
    views = {"x": plain, "strong": plain + torch.tensor([100.0, 0.0])}
    batches = [{name: view[i : i + 8] for name, view in views.items()} for i in (0, 8)]
    model = Noted()
    task = ModelTask(model, lambda: batches, on_x)
    looked = look_through(task)
    learner = PseudoLabels([task], [looked], steps=4, epoch=2, seed=0)
    learner.begin(0)
    trusted = learner.state()["trusted 0"]
    assert trusted.tolist() == [0, 0, *[IGNORED] * 12, 1, 1]
    seen = []
    for step in range(2):
        model.shown.clear()
        (loss,) = list(learner.losses(step))
        strong, weak = model.shown
        rows = [row - 100 for row in strong]
        assert len(rows) == 8
        assert rows[2:] == weak
        assert set(rows[:2]) <= {0, 1, 14, 15}
        assert not set(rows[2:]) & {0, 1, 14, 15}
        seen += rows
        sure = [float(sureness[row]) for row in rows]
        own = torch.tensor([IGNORED if abs(value) < 1 else int(value < 0) for value in sure])
        outputs = torch.tensor([[value, -value] for value in sure])
        losses = nn.functional.cross_entropy(outputs, own, ignore_index=IGNORED, reduction="none")
        torch.testing.assert_close(loss.detach(), losses.sum() / 8)
    assert sorted(seen) == list(range(16))  # an epoch shows everything once
    again = PseudoLabels([task], [looked], steps=4, epoch=2, seed=0)
    again.restore(learner.state())
    assert torch.equal(*(next(iter(each.losses(1))).detach() for each in (again, learner)))


def test_where_all_are_trusted_the_batch_is() -> None:
    task = ModelTask(Noted(), lambda: [{"x": torch.full((4, 2), 9.0)}, {"x": torch.full((4, 2), -9.0)}], on_x)
    learner = PseudoLabels([task], [look_through(task)], steps=2, epoch=2, seed=0)
    learner.begin(0)
    assert learner.state()["trusted 0"].ne(IGNORED).all()
    task.model.shown.clear()  # type: ignore[operator,union-attr]
    assert [len(list(learner.losses(step))) for step in range(2)] == [1, 1]
    assert [len(rows) for rows in task.model.shown] == [4, 4]  # type: ignore[arg-type,union-attr]


def test_examples_of_different_lengths_are_filled_up() -> None:
    """Batches padded each to its own length; the rows of one step come from several."""

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        lengths = batch["mask"].sum(1)
        assert bool((batch["x"].bool() == batch["mask"].bool()).all())
        return model(torch.stack([lengths, -lengths], 1).float())  # type: ignore[no-any-return]

    batches = [{"x": torch.ones(4, n), "mask": torch.ones(4, n).long()} for n in (3, 5)]
    task = ModelTask(Scored(), lambda: batches, forward)
    learner = PseudoLabels([task], [look_through(task)], steps=2, epoch=2, seed=0)
    learner.begin(0)
    assert all(math.isfinite(float(loss.detach())) for step in range(2) for loss in learner.losses(step))


def test_a_strong_view_of_nothing_is_refused() -> None:
    task = ModelTask(Scored(), lambda: [{"x": torch.ones(4, 2), "strong": torch.ones(4, 9)}], on_x)
    learner = PseudoLabels([task], [look_through(task)], steps=1, epoch=1, seed=0)
    learner.begin(0)
    with pytest.raises(InvalidInput, match=r"shape of strong, \[4, 9\]"):
        next(iter(learner.losses(0)))


def fixed(*scores: float) -> Iterator[ModelTask]:
    """Tasks of these accuracies, in hundredths."""
    for value in scores:
        right = round(100 * value)
        outputs = torch.eye(2)[[0] * right + [1] * (100 - right)]
        yield scored(outputs, torch.zeros(100, dtype=torch.int64))


def test_rules_of_selection() -> None:
    assert BestMean(list(fixed(0.5, 0.9)), [1.0, 0.9]).judge(None).value == pytest.approx(0.75)
    target, control = fixed(0.3, 0.79)
    rule = LowestTarget([target], control)
    assert rule.judge(None) == rule.judge([0.9, 0.8])
    assert rule.judge([0.9, 0.8]).value == -0.3
    found = rule.judge([0.9, 0.84])
    assert (found.scores, found.value, found.stop) == ((0.3, 0.79), None, True)
