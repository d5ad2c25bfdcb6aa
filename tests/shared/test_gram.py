"""Means on the sphere from the Gram matrix alone, against the same on the vectors themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from paramsmith.gram import gram_matrix, karcher_coefficients, pair_products, slerp_coefficients
from tests.merge import formulas


def vectors(seed: int, count: int, n: int = 30) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def gram_of(rows: Tensor) -> Tensor:
    return gram_matrix(pair_products(rows).sum(-1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_sums_of_pair_products_are_the_gram_matrix(seed: int, count: int) -> None:
    rows = vectors(seed, count)
    torch.testing.assert_close(gram_of(rows), rows @ rows.T)


def test_pair_products_are_float64() -> None:
    assert pair_products(torch.ones(2, 3)).dtype == torch.float64


@given(st.integers(0, 2**32 - 1), st.floats(-1, 2))
def test_slerp_is_its_formula(seed: int, t: float) -> None:
    rows = vectors(seed, 2)
    found = (slerp_coefficients(gram_of(rows), t) * rows).sum(0)
    np.testing.assert_allclose(found, formulas.slerp(*rows.numpy(), t), atol=1e-9)


@pytest.mark.parametrize("degrees", [0, 1.7, 1.9, 60, 90, 150, 178.1, 178.3, 180])
def test_slerp_is_linear_where_the_vectors_are_nearly_parallel(degrees: float) -> None:
    angle = math.radians(degrees)
    rows = torch.tensor([[2.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)]], dtype=torch.float64)
    found = slerp_coefficients(gram_of(rows), 0.25).squeeze().tolist()
    linear = abs(math.cos(angle)) > 0.9995
    wanted = [0.75, 0.25] if linear else [math.sin(w * angle) / math.sin(angle) for w in (0.75, 0.25)]
    assert found == pytest.approx(wanted)
    assert linear == (degrees in (0, 1.7, 178.3, 180))


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_slerp_ends_at_the_vectors(t: float) -> None:
    assert slerp_coefficients(gram_of(vectors(1, 2)), t).squeeze().tolist() == pytest.approx([1 - t, t], abs=1e-15)


def test_a_zero_vector_is_at_a_right_angle() -> None:
    """As every implementation has it: sin(t pi/2) of the other, not t."""
    rows = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    assert slerp_coefficients(gram_of(rows), 0.3)[1].item() == pytest.approx(math.sin(0.3 * math.pi / 2))
    assert slerp_coefficients(gram_of(rows * 0), 0.3).isfinite().all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40), st.sampled_from([1e-2, 1e-5, 1e-9]))
def test_karcher_takes_the_steps_of_its_formula(seed: int, count: int, max_iter: int, tol: float) -> None:
    rows = vectors(seed, count)
    weight = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 3.0], count).tolist()
    weight[0] = 1.0
    found = (karcher_coefficients(gram_of(rows), weight, max_iter, tol) * rows).sum(0)
    wanted = formulas.karcher(rows.numpy(), weight, max_iter, tol)
    np.testing.assert_allclose(found, wanted, atol=max(1e-6, 5 * tol))


@given(st.integers(0, 2**32 - 1))
def test_karcher_is_where_the_pulls_cancel(seed: int) -> None:
    """The gradient of the sum of squared angles is zero there."""
    rows = vectors(seed, 4)
    mean = (karcher_coefficients(gram_of(rows), [1, 2, 3, 4], 500, 1e-12) * rows).sum(0)
    mean, units = mean / mean.norm(), rows / rows.norm(dim=1, keepdim=True)
    cosine = units @ mean
    pull = torch.arccos(cosine) / torch.sqrt(1 - cosine**2) * torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    assert (pull[:, None] * (units - cosine[:, None] * mean)).sum(0).norm() < 1e-5


def test_karcher_of_zeros() -> None:
    rows = vectors(3, 3)
    nothing = karcher_coefficients(gram_of(rows * 0), [1, 1, 1], 10, 1e-9)
    assert nothing.tolist() == [[0], [0], [0]]
    rows[0] = 0
    both = karcher_coefficients(gram_of(rows), [1, 1, 1], 100, 1e-12)
    alone = karcher_coefficients(gram_of(rows[1:]), [1, 1], 100, 1e-12)
    torch.testing.assert_close(both[1:], alone * 2 / 3)
    assert karcher_coefficients(gram_of(rows), [1, 0, 0], 10, 1e-9).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("shift", [0.0, 1e-12, 1e-9, 1e-7, 1e-4])
def test_karcher_of_opposites_does_not_blow_up(shift: float) -> None:
    rows = vectors(5, 3)
    rows[1] = -rows[0]
    rows[1, 0] += shift
    rows[2] = rows[0] * 2
    found = (karcher_coefficients(gram_of(rows), [1, 1, 0], 100, 1e-9) * rows).sum(0)
    assert found.norm().item() == pytest.approx(rows[0].norm().item(), rel=1e-2)
