"""Which layers to generate: those that Spectrum would train, by the singular values of their matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.target import TargetSpec

_QUARTILES = 1.349  # between those of N(0, 1)
_RANKED = ("matrix", "kernel")


def signal_to_noise(weight: Tensor) -> float:
    """Singular values above the edge of noise against those below, over the largest.

    s = IQR(S)/1.349,  t = s (1 + sqrt(min(n, m)/max(n, m))),  SNR = sum S[S > t] / sum S[S <= t] / max S

    of W (n, m); kernels as (n, rest). t is the edge of Marchenko and Pastur, but with a deviation from the quartiles of
    the singular values themselves, as Spectrum has it, arXiv:2406.06623: a rule of thumb, by which a matrix of noise
    may score higher than one with a strong direction in it. Infinite where nothing is noise, 0 for a matrix of zeros.
    InvalidInput for less than a matrix, and for values that are not finite.

    >>> signal_to_noise(torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0, 0.5])))
    inf
    >>> round(signal_to_noise(torch.diag(torch.tensor([10.0, 3.0, 2.0, 1.0, 0.5]))), 4)
    0.3714
    """
    if weight.dim() < 2 or not weight.numel():
        raise InvalidInput(f"a tensor of shape {list(weight.shape)} has no singular values", "give a matrix")
    matrix = weight.detach().double().flatten(1)  # (n, m)
    if not bool(torch.isfinite(matrix).all()):
        raise InvalidInput("a matrix with values that are not finite has no singular values", "leave it out")
    values = torch.linalg.svdvals(matrix)  # (min(n, m)), falling
    largest = float(values[0])
    if largest == 0:
        return 0.0
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype)).tolist()
    edge = (high - low) / _QUARTILES * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    signal, noise = float(values[values > edge].sum()), float(values[values <= edge].sum())
    return signal / noise / largest if noise else math.inf


def ranked(weights: Mapping[str, Tensor], spec: TargetSpec) -> tuple[tuple[str, float], ...]:
    """The matrices and kernels of a target by their signal-to-noise ratio, the highest first, in order where equal."""
    found = [(s.name, signal_to_noise(weights[s.name])) for s in spec.slots if s.role in _RANKED and len(s.shape) > 1]
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def top(ranking: Sequence[tuple[str, float]], share: float = 0.25, *, by_type: bool = True) -> tuple[str, ...]:
    """Of each type of layer the first floor(share n), at least one; or of all of them together. The highest first.

    Layers are of one type where their names differ in numbers alone. D2NWG generates a quarter, arXiv:2402.18153.

    >>> top([("0.q", 3.0), ("1.k", 2.5), ("1.q", 2.0), ("0.k", 1.0)], 0.5)
    ('0.q', '1.k')
    """
    if not 0 < share <= 1:
        raise InvalidInput(f"a share of {share} of the layers", "give more than 0, and at most 1")
    types: dict[str, list[str]] = {}
    for name, _ in ranking:
        types.setdefault(re.sub(r"\d+", "#", name) if by_type else "", []).append(name)
    kept = {name for names in types.values() for name in names[: max(1, math.floor(share * len(names)))]}
    return tuple(name for name, _ in ranking if name in kept)


def layers_of(spec: TargetSpec, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Each of these tensors with the others of its module, such as its bias, in this order: for `GreedyLayers`."""
    owners: dict[str, list[str]] = {}
    for slot in spec.slots:
        owners.setdefault(slot.name.rpartition(".")[0], []).append(slot.name)
    found = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return tuple(tuple(owners[owner]) for owner in found if owner in owners)
