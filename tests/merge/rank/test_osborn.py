"""OSBORN: the coupling against linear programming, the entropies by hand, the choice against all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.merge.rank.osborn import (
    Source,
    conditional_entropy,
    coupling,
    domain_and_task,
    joint_counts,
    select,
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(seed: int, count: int, below: int) -> Tensor:
    return torch.randint(0, below, (count,), generator=torch.Generator().manual_seed(seed))


def sources(seed: int, how_many: int, count: int = 30) -> list[Source]:
    return [
        Source(normal(seed + i, 20, 3), whole(seed + i, 20, 4), normal(99 + seed + i, count, 3), whole(7 + i, count, 3))
        for i in range(how_many)
    ]


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.sampled_from([1.0, 0.1, 0.02]))
def test_the_coupling_has_uniform_margins(seed: int, rows: int, columns: int, epsilon: float) -> None:
    cost = normal(seed, rows, columns).square()
    plan = coupling(cost, epsilon)
    assert bool((plan >= 0).all())
    torch.testing.assert_close(plan.sum(1), torch.full((rows,), 1 / rows, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        plan.sum(0), torch.full((columns,), 1 / columns, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_coupling_has_the_form_of_the_optimum() -> None:
    """log pi + cost / epsilon is a row's number plus a column's: what the entropic optimum is known by."""
    cost = 1 + normal(1, 6, 9).tanh()
    plan = coupling(cost, 0.5)
    table = plan.log() + cost / (0.5 * cost.mean())
    centred = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    torch.testing.assert_close(centred, torch.zeros_like(centred), rtol=0, atol=1e-5)


def test_a_small_epsilon_gives_the_assignment() -> None:
    cost = normal(2, 8, 8).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    wanted = float(cost[rows, columns].mean())
    plan = coupling(cost, 1e-3)
    assert float((plan * cost).sum()) == pytest.approx(wanted, rel=0.02)
    assert np.array_equal(plan.argmax(1).numpy(), columns)


def test_a_large_epsilon_gives_independence() -> None:
    torch.testing.assert_close(
        coupling(normal(3, 4, 5).square(), 1e6), torch.full((4, 5), 0.05, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e200])
def test_the_coupling_of_any_unit_is_finite(scale: float) -> None:
    plan = coupling(scale * normal(4, 3, 4).square(), 0.05)
    wanted = coupling(normal(4, 3, 4).square(), 0.05) if scale else torch.full((3, 4), 1 / 12, dtype=torch.float64)
    torch.testing.assert_close(plan, wanted, rtol=0, atol=1e-9)


def test_entropies_by_hand() -> None:
    joint = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert conditional_entropy(joint) == pytest.approx(0.5 * math.log(2))
    assert conditional_entropy(joint.T) == pytest.approx(0.75 * (math.log(3) - 2 / 3 * math.log(2)))
    assert joint_counts(torch.tensor([5, 5, 7]), torch.tensor([1, 2, 2])).tolist() == [[1, 1], [0, 1]]


def test_domain_and_task_by_hand() -> None:
    """Two far clusters: the coupling joins each to its like, at a squared distance of 1."""
    far = torch.tensor([[0.0, 0.0], [1000.0, 0.0]]).repeat(3, 1)
    near = far + torch.tensor([0.0, 1.0])
    same = Source(far, torch.tensor([3, 8] * 3), near, torch.zeros(6, dtype=torch.long))
    assert domain_and_task(same, torch.tensor([1, 0] * 3), 0.02) == pytest.approx((1.0, 0.0), abs=1e-9)
    mixed = Source(far, torch.tensor([3, 3, 8, 8, 8, 8]), near, same.predictions)  # clusters: 3 8 8 and 3 8 8
    entropy = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    assert domain_and_task(mixed, torch.tensor([1, 0] * 3), 0.02) == pytest.approx((1.0, entropy), abs=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_each_choice_adds_least(seed: int) -> None:
    labels = whole(seed, 30, 3)
    found = select(sources(seed, 4), labels)
    assert sorted(found.chosen) == [0, 1, 2, 3]
    for place, cost in enumerate(found.costs):
        before = found.chosen[:place]
        rivals = {i: found.score([*before, i]) - found.score(before) for i in range(4) if i not in before}
        assert cost == pytest.approx(min(rivals.values()))
        assert rivals[found.chosen[place]] == pytest.approx(cost)
    assert sum(found.costs) == pytest.approx(found.score(found.chosen))


def test_minus_the_score_is_submodular() -> None:
    found = select(sources(5, 5), whole(5, 30, 3))
    everyone = range(5)
    for size in range(4):
        for small in itertools.combinations(everyone, size):
            for one, more in itertools.permutations([i for i in everyone if i not in small], 2):
                gain_small = found.score([*small, one]) - found.score(small)
                gain_large = found.score([*small, more, one]) - found.score([*small, more])
                assert -gain_small >= -gain_large - 1e-12


def test_a_near_domain_that_knows_the_labels_comes_first() -> None:
    labels = torch.arange(30) % 3
    target = 4 * torch.nn.functional.one_hot(labels, 3).double() + 0.1 * normal(1, 30, 3)
    good = Source(target + 0.1 * normal(2, 30, 3), labels, target, labels)
    far = Source(target + 20, labels, target, labels)
    blind = Source(good.source, whole(3, 30, 3), target, labels)
    found = select([far, blind, good], labels, 2)
    assert found.chosen == (2, 1)
    assert found.task[1] > 0.5 > 0.01 > found.task[2]
    assert found.domain[0] > 500


def test_pairs_that_agree_have_no_cost() -> None:
    labels = whole(1, 30, 3)
    first = sources(6, 1)[0]
    found = select([first, Source(first.source, first.source_labels, first.target, 2 - first.predictions)], labels)
    assert found.cohesion == ((0.0, 0.0), (0.0, 0.0))
    two = select(sources(6, 2), labels).cohesion
    assert two[0][1] == two[1][0] > 0.5


@pytest.mark.parametrize("count", [0, 4])
def test_how_many_can_be_chosen(count: int) -> None:
    with pytest.raises(InvalidInput, match=f"{count} sources are to be chosen from 3"):
        select(sources(1, 3), whole(1, 30, 3), count)


def test_what_cannot_be_chosen_from() -> None:
    good = sources(1, 1)[0]
    labels = whole(1, 30, 3)
    with pytest.raises(InvalidInput, match="no sources"):
        select([], labels)
    with pytest.raises(InvalidInput, match="have 2 values each, the target's 3"):
        select([Source(good.source[:, :2], good.source_labels, good.target, good.predictions)], labels)
    with pytest.raises(InvalidInput, match="30 predictions stand beside 29"):
        select([good, Source(good.source, good.source_labels, good.target, good.predictions[:29])], labels)
    with pytest.raises(InvalidInput, match="epsilon is 0"):
        select([good], labels, epsilon=0)
    with pytest.raises(InvalidInput, match="NaN or an infinity"):
        select([Source(good.source * math.inf, good.source_labels, good.target, good.predictions)], labels)
