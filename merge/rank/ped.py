"""Potential-energy descent: let the classes push each other apart, as fine-tuning would, before features are judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput

# Spreads of the general features below this count as this (the authors' floor).
FLOOR = 1e-3
# Means nearer than this share of their size are one: their difference is rounding, and has no direction.
TOUCHING = 1e-12


@dataclass(frozen=True)
class Descent:
    """Features after the descent, and how each of its steps went."""

    features: Tensor  # (n, d) float64
    changes: tuple[float, ...]  # the classes' displacement at each step that was kept, L1, in units of the general std
    coinciding: int  # pairs of classes with one mean, which have no direction to part in


def descend(
    features: Tensor,
    labels: Tensor,
    general: Tensor | None = None,
    *,
    time_step: float = 0.1,
    sigmas: float = 0.6,
    stiffness: float = 1.0,
    exit_ratio: float = 0.5,
    steps: int = 6,
) -> Descent:
    """Move whole classes until a step moves them by no more than `exit_ratio` of the first; that step is not taken.

    features (n, d), labels (n,) any integers, general (m, d): features of general data by the same model, whose mean
    and standard deviation rescale the space (without them, those of `features`). Nothing moves where no two classes
    overlap. InvalidInput for values that are not finite or shapes that do not fit.

    Paper: Li et al., arXiv:2308.15074.

    >>> x = torch.tensor([[0.0], [2.0], [1.0], [3.0]])
    >>> moved = descend(x, torch.tensor([0, 0, 1, 1]), x, steps=1, sigmas=1.0).features
    >>> [round(value, 6) for value in moved.flatten().tolist()]
    [-0.005, 1.995, 1.005, 3.005]
    """
    moved, classes = checked(features, labels)
    reference = moved if general is None else checked(general, torch.zeros(len(general), dtype=torch.long))[0]
    if reference.shape[1] != moved.shape[1]:
        told = f"the general features have {reference.shape[1]} values each, the target's {moved.shape[1]}"
        raise InvalidInput(told, "take both from the same layer of the same model")
    spread = reference.std(0, correction=0).clamp_min(FLOOR)
    changes: list[float] = []
    coinciding = 0
    for _ in range(steps):
        shifts, same = displacements(moved / spread, classes, time_step, sigmas, stiffness)
        coinciding = max(coinciding, same)
        change = float(shifts.abs().sum())
        if change == 0 or (changes and not change / changes[0] > exit_ratio):
            break
        changes.append(change)
        moved = moved + (shifts * spread)[classes]
    return Descent(moved, tuple(changes), coinciding)


def displacements(
    features: Tensor, classes: Tensor, time_step: float, sigmas: float, stiffness: float
) -> tuple[Tensor, int]:
    """How far each class goes in one step, (classes, d), and how many pairs of classes have one mean.

    A class has the radius R = sqrt(sum of its variances). Two overlap by o = max(sigmas (R_a + R_b) - |mu_a - mu_b|, 0)
    and part along mu_a - mu_b, each by min(time_step^2 stiffness o / 2, o).
    """
    means, radii = class_moments(features, classes)
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    overlap = (sigmas * (radii[:, None] + radii) - distance).clamp_min(0)
    size = torch.minimum(0.5 * time_step**2 * stiffness * overlap, overlap)
    largest = means.norm(dim=1)
    apart = distance > TOUCHING * (largest[:, None] + largest)
    pull = torch.where(apart, size / torch.where(apart, distance, 1.0), 0.0)  # (classes, classes)
    same = int((~apart).sum()) - len(means)
    return pull.sum(1, keepdim=True) * means - pull @ means, same // 2


def class_moments(features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each class, (classes, d), and the root of its summed variances, (classes,)."""
    count = torch.bincount(classes).to(features.dtype)
    means = features.new_zeros(len(count), features.shape[1]).index_add_(0, classes, features) / count[:, None]
    squares = (features - means[classes]).square().sum(1)
    return means, (features.new_zeros(len(count)).index_add_(0, classes, squares) / count).sqrt()


def checked(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The features in float64 and the labels as 0 .. classes - 1. InvalidInput for what cannot be judged."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        told = f"features {list(features.shape)} and labels {list(labels.shape)} do not fit"
        raise InvalidInput(told, "features are (examples, values), labels (examples,)")
    if not len(features):
        raise InvalidInput("there are no features", "give at least one example")
    if labels.is_floating_point() or labels.is_complex():
        raise InvalidInput(f"labels are {labels.dtype}, not integers", "this score is for classes")
    wide = features.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise InvalidInput("the features hold NaN or an infinity", "look at the model that they are from")
    return wide, torch.unique(labels, return_inverse=True)[1]
