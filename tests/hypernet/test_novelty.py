"""Copies are told from what is new, in both directions."""

from __future__ import annotations

import pytest
import torch

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.evaluation.novelty import ensemble_gain, error_overlap, nearest_two, novelty

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(count: int, seed: int, width: int = 50) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_copies_with_a_little_noise_are_copies() -> None:
    training = drawn(40, 0)
    found = novelty(training[:10] + 0.01 * drawn(10, 1), training, drawn(30, 2))
    assert found.copies == 1
    assert found.ratio < 0.05
    assert found.distance < 0.05
    assert found.held_out == pytest.approx(1, abs=0.1)


def test_what_comes_from_the_same_distribution_is_new() -> None:
    found = novelty(drawn(30, 3), drawn(40, 0))
    assert found.copies == 0
    assert found.ratio > 0.8
    assert found.distance == pytest.approx(1, abs=0.1)
    assert found.held_out is None


def test_distances_are_those_of_numpy() -> None:
    a, b = drawn(5, 1, 3), drawn(7, 2, 3)
    gaps = (a[:, None].double() - b[None].double()).norm(dim=-1).sort(1).values
    first, second = nearest_two(a, b)
    assert torch.allclose(first, gaps[:, 0])
    assert torch.allclose(second, gaps[:, 1])


def test_a_network_is_not_its_own_neighbour() -> None:
    a = torch.tensor([[0.0], [1.0], [5.0]])
    first, second = nearest_two(a, a, leave_out=True)
    assert first.tolist() == [1, 1, 4]
    assert second.tolist() == [5, 4, 5]
    first, second = nearest_two(a[:2], a[:2], leave_out=True)
    assert (first.tolist(), second.tolist()) == ([1, 1], [1, 1])


def test_one_network_of_training_is_not_enough() -> None:
    with pytest.raises(InvalidInput, match="two networks"):
        novelty(drawn(3, 0), drawn(1, 1))


def test_mistakes_in_common() -> None:
    wrong = torch.tensor([[True, True, False, False], [False, False, False, False]])
    known = torch.tensor([[True, False, False, False], [True, True, True, True]])
    assert error_overlap(wrong, known).tolist() == [0.5, 0.0]
    assert error_overlap(wrong[1:], wrong[1:]).tolist() == [1.0]


def test_an_ensemble_of_copies_gains_nothing() -> None:
    logits = drawn(1, 4, 60).view(1, 20, 3)
    y = torch.arange(20) % 3
    assert ensemble_gain(logits.expand(4, -1, -1), y) == 0
    weak = 0.4 * torch.nn.functional.one_hot(y, 3) + drawn(15, 5, 60).view(15, 20, 3)
    assert ensemble_gain(weak, y) > 0.1
