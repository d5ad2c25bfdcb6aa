"""How well frozen features would serve a task: LogME, the evidence of a linear model, and SFDA, a Fisher score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import InvalidInput

from .ped import checked

# alpha / beta is held to this share of the mean squared singular value, from below and, inverted, from above: features
# that fit the labels exactly have an evidence without bound, those that say nothing want an infinite alpha.
_EXTREME = 1e-10
_ROUNDS = 200
# Shrinkage of SFDA's scatter is at least this (the authors' floor).
_LEAST_SHRINKAGE = 1e-10


@dataclass(frozen=True)
class Evidence:
    """The maximum of the evidence of one target: its natural logarithm over n, and the precisions it is reached at."""

    value: float
    alpha: float  # of the weights' prior
    beta: float  # of the noise


def logme(features: Tensor, labels: Tensor) -> float:
    """LogME: the mean over classes of the maximal log evidence, per example, of a linear model of the class indicator.

    y = F w + noise, w ~ N(0, I / alpha), noise ~ N(0, I / beta), alpha and beta at their maximum:

        log p(y | F) = n/2 log beta + d/2 log alpha - n/2 log 2 pi - beta/2 |F m - y|^2 - alpha/2 |m|^2 - 1/2 log |A|
        A = alpha I + beta F'F,  m = beta A^-1 F'y

    features (n, d); labels (n,) integers, or floats (n,) or (n, values) for regression. Higher is better.
    InvalidInput for fewer than two classes and for values that are not finite.
    Where d > n the authors' second program leaves (d - n)/2 log alpha too much in the sum; here |A| is whole.

    Paper: You et al., arXiv:2102.11005 (fixed point: arXiv:2110.10545).

    >>> x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    >>> logme(x, torch.tensor([0, 0, 1, 1])) > logme(x, torch.tensor([0, 1, 0, 1]))
    True
    """
    found = evidences(features, labels)
    return sum(evidence.value for evidence in found) / len(found)


def evidences(features: Tensor, labels: Tensor) -> list[Evidence]:
    """The evidence of each class, or of each value of a regression."""
    if labels.dtype.is_floating_point:
        wide = checked(features, torch.zeros(len(labels), dtype=torch.long))[0]
        targets = labels.detach().double().reshape(len(labels), -1)
        if not bool(torch.isfinite(targets).all()):
            raise InvalidInput("the labels hold NaN or an infinity", "look at the data")
        if not bool(targets.any(0).all()):
            raise InvalidInput("the labels are all zero", "there is nothing to explain")
    else:
        wide, classes = _of_classes(features, labels)
        targets = functional.one_hot(classes).double()
    left, singular, _ = torch.linalg.svd(wide, full_matrices=False)
    squares = singular.square()
    coordinates = (left.T @ targets).square()  # (k, targets)
    outside = (targets.square().sum(0) - coordinates.sum(0)).clamp_min(0)
    return [_maximise(squares, c, float(o), len(wide)) for c, o in zip(coordinates.T, outside, strict=True)]


def _maximise(squares: Tensor, coordinates: Tensor, outside: float, count: int) -> Evidence:
    """MacKay's fixed point in lambda = alpha / beta, everything in the basis of singular vectors."""
    scale = float(squares.mean())
    if scale == 0:
        return _profile(squares, coordinates, outside, count, 1.0)
    least, most = _EXTREME * scale, scale / _EXTREME
    ratio = scale  # where the authors begin at 1, so that the unit of the features does not matter
    for _ in range(_ROUNDS):
        gamma = float((squares / (squares + ratio)).sum())
        length = float((squares * coordinates / (squares + ratio).square()).sum())
        residual = float((coordinates * (ratio / (squares + ratio)).square()).sum()) + outside
        before, freedom = ratio, float((ratio / (squares + ratio)).sum()) + count - len(squares)
        ratio = most if length == 0 or freedom == 0 else gamma / length * residual / freedom
        ratio = min(max(ratio, least), most)
        if abs(ratio - before) <= 1e-12 * before:
            break
    return _profile(squares, coordinates, outside, count, ratio)


def _profile(squares: Tensor, coordinates: Tensor, outside: float, count: int, ratio: float) -> Evidence:
    """The evidence at lambda, with beta at its maximum: n / (|F m - y|^2 + lambda |m|^2)."""
    energy = outside + float((coordinates * ratio / (squares + ratio)).sum())
    beta = count / energy
    shrunk = float(torch.log(ratio / (squares + ratio)).sum())
    value = 0.5 * (count * math.log(beta) - count - count * math.log(2 * math.pi) + shrunk)
    return Evidence(value / count, ratio * beta, beta)


def sfda(features: Tensor, labels: Tensor, shrinkage: float | None = None) -> float:
    """SFDA: the mean probability that a regularised Fisher discriminant gives the right class, on hardened features.

    The within-class scatter is shrunk, S = (1 - s) S_w + s tr(S_w)/d I with s = exp(-5 largest eigenvalue of S_w), and
    classes score x' S^-1 mu_c - mu_c' S^-1 mu_c / 2 + log(share of c). Then every x moves to q x + (1 - q) times the
    mean of the other classes' means, where q is the softmax of its class probabilities (softened once more), at its own
    class; the discriminant with the same s is fitted anew and scored. In (0, 1], higher is better.

    features (n, d), labels (n,) integers; `shrinkage` is s where it is not to be found. As in the authors' program the
    mean is that of probabilities, not of logarithms; the eigenvalue is exact, where they take some rounds of the power
    method. InvalidInput for fewer than two classes and for values that are not finite.

    Paper: Shao et al., arXiv:2207.03036.

    >>> x = torch.tensor([[1.0], [1.1], [-1.0], [-1.1]])
    >>> sfda(x, torch.tensor([0, 0, 1, 1])) > sfda(x, torch.tensor([0, 1, 0, 1]))
    True
    """
    wide, classes = _of_classes(features, labels)
    if shrinkage is None:
        largest = float(torch.linalg.eigvalsh(_within(wide, classes))[-1])
        shrinkage = max(math.exp(-5 * largest), _LEAST_SHRINKAGE)
    own, wide = classes[:, None], wide - wide.mean(0)  # no score depends on the origin, but rounding does
    sure = discriminant(wide, classes, shrinkage).softmax(1).gather(1, own)  # (n, 1)
    means = _means(wide, classes)
    others = (means.sum(0) - means) / (len(means) - 1)
    mixed = sure * wide + (1 - sure) * others[classes]
    return float(discriminant(mixed, classes, shrinkage).gather(1, own).mean())


def discriminant(features: Tensor, classes: Tensor, shrinkage: float) -> Tensor:
    """The class probabilities (n, classes) of a Fisher discriminant whose scatter is shrunk towards its mean variance.

    The shrinkage is at least what keeps the scatter invertible, where all examples of a class coincide.
    """
    scatter, means = _within(features, classes), _means(features, classes)
    size = len(scatter)
    mean, variance = float(scatter.trace()) / size, float(features.var(0, correction=0).mean())
    ridge = max(shrinkage * mean, torch.finfo(scatter.dtype).eps * variance) or 1.0
    scatter = (1 - shrinkage) * scatter + ridge * torch.eye(size, dtype=scatter.dtype, device=scatter.device)
    coefficients: Tensor = torch.linalg.solve(scatter, means.T)  # (d, classes)
    share = torch.bincount(classes).to(features.dtype) / len(classes)
    intercept = share.log() - 0.5 * (means * coefficients.T).sum(1)
    return (features @ coefficients + intercept).softmax(1)


def _means(features: Tensor, classes: Tensor) -> Tensor:
    count = torch.bincount(classes).to(features.dtype)
    return features.new_zeros(len(count), features.shape[1]).index_add_(0, classes, features) / count[:, None]


def _within(features: Tensor, classes: Tensor) -> Tensor:
    """The mean over examples of (x - mu)(x - mu)': (d, d)."""
    centred = features - _means(features, classes)[classes]
    return centred.T @ centred / len(features)


def _of_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    wide, classes = checked(features, labels)
    if int(classes.max()) == 0:
        raise InvalidInput("all examples have one label", "give examples of at least two classes")
    return wide, classes
