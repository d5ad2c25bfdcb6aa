"""Positive flips, by counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramsmith.errors import InvalidInput
from paramsmith.merge.rank.flips import complementarity, positive_flips

ROWS = st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=40)


@given(ROWS)
def test_flips_are_what_is_counted(rows: list[tuple[int, int, int, int]]) -> None:
    *predictions, labels = torch.tensor(rows).T
    table = complementarity(predictions, labels)
    for i in range(3):
        for j in range(3):
            counted = sum(row[i] == row[3] != row[j] for row in rows)
            assert float(table[i, j]) == counted / len(rows)
            assert positive_flips(predictions[i], predictions[j], labels) == counted / len(rows)


@given(ROWS)
def test_flips_explain_the_difference_in_accuracy(rows: list[tuple[int, int, int, int]]) -> None:
    a, b, _, labels = torch.tensor(rows).T
    difference = float(((a == labels).double() - (b == labels).double()).mean())
    table = complementarity([a, b], labels)
    assert float(table[0, 1] - table[1, 0]) == pytest.approx(difference, abs=1e-12)


def test_predictions_for_other_examples() -> None:
    with pytest.raises(InvalidInput, match="do not fit"):
        positive_flips(torch.zeros(3), torch.zeros(2), torch.zeros(3))
    with pytest.raises(InvalidInput, match="do not fit"):
        complementarity([torch.zeros(0)], torch.zeros(0))
