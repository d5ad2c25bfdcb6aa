"""LogME against dense Bayesian linear regression, SFDA against scikit-learn's discriminant and its authors' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.merge.rank.transferability import discriminant, evidences, logme, sfda

SIZES = [(40, 5, 3), (30, 50, 4), (12, 12, 2), (60, 8, 2)]  # examples, values, classes: tall, wide, square
sizes = pytest.mark.parametrize(("count", "width", "classes"), SIZES)


def data(seed: int, count: int, width: int, classes: int, scale: float = 0.6) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = 0.7 * scale * generator.normal(size=(classes, width))
    features = centres[labels] + scale * generator.normal(size=(count, width))
    return torch.tensor(features), torch.tensor(labels)


def dense_evidence(features: Tensor, target: Tensor, alpha: float, beta: float) -> float:
    """log N(y; 0, I / beta + F F' / alpha) / n, with the whole covariance."""
    x, y, n = features.numpy(), target.double().numpy(), len(features)
    covariance = np.eye(n) / beta + x @ x.T / alpha
    value = y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + n * math.log(2 * math.pi)
    return float(-0.5 * value / n)


@sizes
def test_the_evidence_is_that_of_the_dense_normal(count: int, width: int, classes: int) -> None:
    features, labels = data(1, count, width, classes)
    for name, found in enumerate(evidences(features, labels)):
        wanted = dense_evidence(features, labels == name, found.alpha, found.beta)
        assert found.value == pytest.approx(wanted, abs=1e-9)


@sizes
def test_the_evidence_is_at_its_maximum(count: int, width: int, classes: int) -> None:
    """No other precisions do better: an independent search over both, from many starts, finds the same maximum."""
    features, labels = data(2, count, width, classes)
    for name, found in enumerate(evidences(features, labels)):
        target = labels == name

        def cost(logs: np.ndarray, target: Tensor = target) -> float:
            return -dense_evidence(features, target, math.exp(logs[0]), math.exp(logs[1]))

        starts = ((-2.0, 0.0), (1.0, 3.0), (5.0, 1.0))
        searched = [minimize(cost, start, bounds=[(-8, 12), (-3, 8)], method="L-BFGS-B") for start in starts]
        assert found.value == pytest.approx(-min(s.fun for s in searched), abs=1e-5)


def test_logme_is_near_the_authors_where_theirs_is_whole() -> None:
    """LogME.py of thuml/LogME executed on these features (fixed point, d < n); its 1e-5 keep it from being exact."""
    for (count, width, classes, scale), wanted in {
        (40, 5, 3, 0.6): -0.7827841512776837,
        (60, 8, 2, 1.0): -0.6581640892525606,
        (200, 20, 5, 0.3): -0.21520433648610812,
    }.items():
        assert logme(*data(count, count, width, classes, scale)) == pytest.approx(wanted, abs=1e-6)


def test_logme_of_the_authors_first_program_where_features_outnumber_examples() -> None:
    """The second one's sum leaves out d - n terms there, and gives 1.374; the first stops at a change of 1 %."""
    assert logme(*data(30, 30, 50, 4, 0.4)) == pytest.approx(-0.14586709082658147, abs=3e-3)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(SIZES), st.floats(1e-3, 1e3))
def test_logme_does_not_see_units_rotations_or_names(seed: int, size: tuple[int, int, int], scale: float) -> None:
    features, labels = data(seed, *size)
    wanted = logme(features, labels)
    turn = torch.linalg.qr(torch.randn(size[1], size[1], generator=torch.Generator().manual_seed(seed)).double())[0]
    assert logme(scale * features @ turn, 5 - 3 * labels) == pytest.approx(wanted, abs=1e-6)


def test_logme_prefers_features_that_tell_the_classes_apart() -> None:
    features, labels = data(3, 60, 6, 3)
    apart = features + 3 * torch.nn.functional.one_hot(labels, 6)
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert logme(apart, labels) > logme(features, labels) > logme(features, shuffled)


def test_logme_of_features_that_say_nothing_is_the_evidence_of_noise() -> None:
    labels = torch.arange(40) % 2
    noise = 0.5 * (math.log(2) - 1 - math.log(2 * math.pi))  # half of the labels are ones: beta = 2
    assert logme(torch.zeros(40, 3), labels) == pytest.approx(noise, abs=1e-12)
    blind = torch.ones(40, 1) * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(10)[:, None]
    assert logme(blind, labels) == pytest.approx(noise, abs=1e-6)


def test_logme_of_a_perfect_fit_is_finite() -> None:
    """Where y is a column of the features, the evidence of an exact linear model has no bound."""
    labels = torch.arange(20) % 2
    fits = torch.nn.functional.one_hot(labels, 2)
    assert logme(data(4, 20, 2, 2)[0], labels) + 3 < logme(fits, labels) < 20


def test_logme_of_a_regression() -> None:
    features = data(5, 30, 4, 2)[0]
    targets = features[:, :2] + 0.1 * data(6, 30, 2, 2)[0]
    found = evidences(features, targets)
    assert [f.value for f in found] == pytest.approx(
        [dense_evidence(features, targets[:, i], f.alpha, f.beta) for i, f in enumerate(found)], abs=1e-9
    )
    assert logme(features, targets) == pytest.approx(sum(f.value for f in found) / 2)
    assert logme(features, targets[:, 0]) == pytest.approx(found[0].value)


@sizes
@pytest.mark.parametrize("shrinkage", [0.01, 0.3])
def test_the_discriminant_is_scikit_learns(count: int, width: int, classes: int, shrinkage: float) -> None:
    features, labels = data(7, count, width, classes)
    found = discriminant(features, labels, shrinkage)
    wanted = (
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features, labels).predict_proba(features)
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


AUTHORS = [  # metrics.py of TencentARC/SFDA executed: the shrinkage it found, and its score
    ((40, 5, 3, 0.6), 0.06476663836181253, 0.4160721099385718),
    ((60, 8, 2, 1.0), 0.0010860007389987831, 0.6790396819769117),
    ((200, 20, 5, 0.3), 0.5339760035141314, 0.7300651537618019),
]


@pytest.mark.parametrize(("size", "shrinkage", "wanted"), AUTHORS)
def test_sfda_is_the_authors(size: tuple[int, int, int, float], shrinkage: float, wanted: float) -> None:
    """With their shrinkage to 1e-9; with ours, from the exact eigenvalue, nearly."""
    features, labels = data(size[0], *size)
    assert sfda(features, labels, shrinkage) == pytest.approx(wanted, abs=1e-9)
    assert sfda(features, labels) == pytest.approx(wanted, abs=1e-3)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(SIZES), st.floats(-100, 100))
def test_sfda_does_not_see_origins_rotations_or_names(seed: int, size: tuple[int, int, int], origin: float) -> None:
    features, labels = data(seed, *size)
    wanted = sfda(features, labels)
    turn = torch.linalg.qr(torch.randn(size[1], size[1], generator=torch.Generator().manual_seed(seed)).double())[0]
    assert 0 < wanted <= 1
    assert sfda(features @ turn + origin, 5 - 3 * labels) == pytest.approx(wanted, abs=1e-6)


def test_sfda_prefers_features_that_tell_the_classes_apart() -> None:
    features, labels = data(8, 60, 6, 3)
    apart = features + 3 * torch.nn.functional.one_hot(labels, 6)
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert sfda(apart, labels) > sfda(features, labels) > sfda(features, shuffled)


def test_sfda_is_harder_than_the_discriminant() -> None:
    """Moving every example towards the other classes' means makes the classes harder to tell apart."""
    features, labels = data(9, 60, 4, 3)
    easy = float(discriminant(features, labels, 0.1).gather(1, labels[:, None]).mean())
    assert sfda(features, labels, 0.1) < easy


@pytest.mark.parametrize("spread", [0.0, 1e-200])
def test_sfda_of_classes_that_are_points(spread: float) -> None:
    labels = torch.arange(12) % 3
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[labels]
    assert sfda(points + spread * torch.arange(12)[:, None], labels) == pytest.approx(1, abs=1e-6)
    assert sfda(torch.ones(12, 2), labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize("score", [logme, sfda])
@pytest.mark.parametrize(
    ("features", "labels", "told"),
    [
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.long), "all examples have one label"),
        (torch.ones(3, 2), torch.zeros(4, dtype=torch.long), "do not fit"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.long), "there are no features"),
        (torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), "NaN or an infinity"),
    ],
)
def test_what_has_no_score(score: object, features: Tensor, labels: Tensor, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        score(features, labels)  # type: ignore[operator]


def test_what_has_no_evidence() -> None:
    with pytest.raises(InvalidInput, match="the labels hold NaN"):
        logme(torch.ones(2, 1), torch.tensor([1.0, float("nan")]))
    with pytest.raises(InvalidInput, match="the labels are all zero"):
        logme(torch.ones(2, 1), torch.zeros(2))
    with pytest.raises(InvalidInput, match="not integers"):
        sfda(torch.ones(2, 1), torch.ones(2))
