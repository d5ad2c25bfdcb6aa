"""Potential-energy descent, against the authors' own function and what must hold of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.merge.rank.ped import FLOOR, descend, displacements

PED: dict[str, Any] = json.loads((Path(__file__).resolve().parents[2] / "oracles" / "ped.json").read_text())
FEATURES, GENERAL = (torch.tensor(PED[key], dtype=torch.float64) for key in ("X", "general_X"))
LABELS = torch.tensor(PED["y"])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", range(1, 7))
def test_every_step_is_the_authors(steps: int) -> None:
    """The oracle: metrics.py of lixiaotong97/PED executed in numpy float64; 1e-12."""
    found = descend(FEATURES, LABELS, GENERAL, steps=steps)
    wanted = PED["steps"][:steps]
    torch.testing.assert_close(
        found.features, torch.tensor(wanted[-1]["X_after"], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert found.changes == pytest.approx([step["position_change"] for step in wanted], abs=1e-12)


def test_the_descent_is_the_authors() -> None:
    found = descend(FEATURES, LABELS, GENERAL)
    torch.testing.assert_close(found.features, torch.tensor(PED["final_X"], dtype=torch.float64), rtol=0, atol=1e-12)
    assert len(found.changes) == len(PED["steps"])
    assert found.coinciding == 0


def test_the_step_that_falls_below_the_ratio_is_not_taken() -> None:
    """A time step so large that the first move undoes the whole overlap: the second moves little, and is discarded."""
    features, labels = torch.tensor([[0.0], [2.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    found = descend(features, labels, torch.tensor([[-1.0], [1.0]]), time_step=10.0, sigmas=1.0)
    # means 1 apart, radii 1 and 1: the overlap of 1 is what each class moves, and nothing overlaps after it
    assert found.features.flatten().tolist() == [-1.0, 1.0, 2.0, 4.0]
    assert found.changes == (2.0,)


def test_changes_are_compared_with_the_first() -> None:
    found = descend(FEATURES, LABELS, GENERAL, time_step=1.0)
    everything = descend(FEATURES, LABELS, GENERAL, time_step=1.0, exit_ratio=0.0)
    assert len(found.changes) < len(everything.changes)
    assert everything.changes[: len(found.changes)] == found.changes
    assert everything.changes[len(found.changes)] / found.changes[0] <= 0.5 < found.changes[-1] / found.changes[0]


def test_classes_far_apart_stay_where_they_are() -> None:
    """Where the authors' loop divides 0 by 0."""
    features = torch.tensor([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0], [9.1, 9.0]], dtype=torch.float64)
    found = descend(features, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(found.features, features)
    assert found.changes == ()


def test_classes_of_one_mean_have_no_direction() -> None:
    """Where the authors' step divides 0 by 0; the third class still parts from both."""
    features = torch.tensor([[-1.0], [1.0], [-2.0], [2.0], [0.5], [1.5]], dtype=torch.float64)
    found = descend(features, torch.tensor([0, 0, 1, 1, 2, 2]), steps=1)
    assert found.coinciding == 1
    moved = (found.features - features).flatten()
    assert bool(torch.isfinite(moved).all())
    assert float(moved[2]) < 0 < float(moved[4])  # the wider of the two is pushed away, the other is out of reach
    assert moved.tolist()[:2] == [0.0, 0.0]
    same = descend(features[:4], torch.tensor([0, 0, 1, 1]))
    assert torch.equal(same.features, features[:4])
    assert same.coinciding == 1


def test_means_that_differ_by_rounding_are_one() -> None:
    features = torch.tensor([[0.1], [0.3], [0.2], [0.6], [0.3], [0.3]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    means = features[::2].sum() / 3, features[1::2].sum() / 3 - 0.2
    assert 0 < abs(means[0] - means[1]) < 1e-15
    features[1::2] -= 0.2
    assert descend(features, labels).coinciding == 1


def test_flat_general_features_count_as_the_floor() -> None:
    flat = GENERAL.clone()
    flat[:, 1] = 3.0
    wanted = descend(FEATURES, LABELS, torch.stack([flat[:, 0], 3 + FLOOR * torch.tensor([1.0, -1.0] * 6)], 1))
    torch.testing.assert_close(descend(FEATURES, LABELS, flat).features, wanted.features, rtol=0, atol=1e-12)


def test_without_general_features_the_own_ones_rescale() -> None:
    assert torch.equal(descend(FEATURES, LABELS).features, descend(FEATURES, LABELS, FEATURES).features)


def test_names_of_labels_do_not_matter() -> None:
    other = torch.tensor([7, -3, 40])[LABELS]
    found = descend(FEATURES, other, GENERAL)
    torch.testing.assert_close(found.features, descend(FEATURES, LABELS, GENERAL).features, rtol=0, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 6))
def test_pairs_part_and_the_whole_stays_in_place(seed: int, classes: int, width: int) -> None:
    """What one class is pushed, the other is pushed back: displacements sum to zero; each leaves what overlaps it."""
    features, labels = normal(seed, 8 * classes, width), torch.arange(8 * classes) % classes
    shifts, same = displacements(features, labels, 0.1, 0.6, 1.0)
    assert same == 0
    torch.testing.assert_close(shifts.sum(0), torch.zeros(width, dtype=torch.float64), rtol=0, atol=1e-12)
    if classes == 2:
        means = torch.stack([features[labels == c].mean(0) for c in (0, 1)])
        assert float((shifts[0] - shifts[1]) @ (means[0] - means[1])) >= 0


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_the_unit_of_the_features_does_not_matter(seed: int, scale: float, origin: float) -> None:
    features, labels, general = normal(seed, 24, 3), torch.arange(24) % 3, normal(seed + 1, 30, 3)
    wanted = scale * descend(features, labels, general).features + origin
    found = descend(scale * features + origin, labels, scale * general + origin).features
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("features", "labels", "general", "told"),
    [
        (torch.ones(3), torch.ones(3, dtype=torch.long), None, "do not fit"),
        (torch.ones(3, 2), torch.ones(4, dtype=torch.long), None, "do not fit"),
        (torch.ones(0, 2), torch.ones(0, dtype=torch.long), None, "there are no features"),
        (torch.ones(3, 2), torch.ones(3), None, "not integers"),
        (torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), None, "NaN or an infinity"),
        (torch.ones(3, 2), torch.tensor([0, 1, 0]), torch.full((2, 2), float("inf")), "NaN or an infinity"),
        (torch.ones(3, 2), torch.tensor([0, 1, 0]), torch.ones(5, 3), "have 3 values each, the target's 2"),
    ],
)
def test_what_cannot_be_moved(features: Tensor, labels: Tensor, general: Tensor | None, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        descend(features, labels, general)
