"""Principal components of vectors that come batch by batch, in fp64: by covariances, or by inner products (dual)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from paramsmith.errors import InvalidInput

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]  # vectors (B, n, P); their groups (n,); which numbers are there (n, P)
Batches: TypeAlias = Callable[[], Iterator[Rows]]

LARGEST = 16_384  # side of a matrix that is decomposed: 2 GB
_HELD = 1 << 26  # numbers in fp64 that are held at once, 512 MB
_RANK = 1e-6  # of the largest singular value: below is rounding


@dataclass(frozen=True)
class Principal:
    """Of each of G groups, in fp64: mean (G, P), components (G, r, P), singular values (G, r).

    `count` (G,): how many components are filled, the others being 0. `samples` (G,): how many vectors there were.
    """

    mean: Tensor
    components: Tensor
    singular: Tensor
    count: Tensor
    samples: Tensor


def principal(batches: Batches, groups: int, rank: int) -> Principal:
    """X_g - mean_g = U S V for each group g: the rows of V by falling S, at most half as many as there are vectors.

    N - 1 components of N vectors would hold each of them exactly, and every new vector would be an affine combination
    of those. The largest entry of a component is positive. Numbers that are not there count as the mean. The batches
    are read twice, or more often where vectors are longer than they are many. InvalidInput where no group has three
    vectors, and for too many of too many numbers.
    """
    mean, samples = _means(batches, groups)
    if int(samples.max()) < 3:
        raise InvalidInput("fewer than 3 networks have no components to speak of", "train more for the zoo")
    size, dual = mean.shape[1], groups == 1 and int(samples[0]) < mean.shape[1]
    side = int(samples[0]) if dual else size
    if side > LARGEST:
        fact = f"{int(samples.sum()):,} vectors of {size:,} numbers have a matrix of {side:,} rows to decompose"
        raise InvalidInput(f"{fact}; the most is {LARGEST:,}", "use fewer networks, shorter tokens, or another codec")
    found = _dual(batches, mean, side, min(rank, side)) if dual else _direct(batches, mean, min(rank, side))
    components, singular = found  # (G, r, P), (G, r)
    kept = singular > _RANK * singular[:, :1]
    kept &= torch.arange(singular.shape[1], device=kept.device) < (samples // 2)[:, None]
    signs = components.gather(2, components.abs().argmax(2, keepdim=True)).sign()
    components = torch.where(kept[..., None], components * signs, 0.0)
    return Principal(mean, components, torch.where(kept, singular, 0.0), kept.sum(1), samples)


def _means(batches: Batches, groups: int) -> tuple[Tensor, Tensor]:
    """The mean (G, P) of the numbers that are there, and the number of vectors (G,)."""
    sums, there, samples = torch.zeros(()), torch.zeros(()), torch.zeros(groups)
    for vectors, group, mask in _pieces(batches):
        member = one_hot(group, groups).double().T  # (G, n)
        sums = sums + member @ torch.where(mask, vectors, 0.0).double().sum(0)
        there = there + member @ mask.double() * len(vectors)
        samples = samples.to(member) + member.sum(1) * len(vectors)
    return sums / there.clamp_min(1), samples.long()


def _direct(batches: Batches, mean: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """By the sums of squares (P, P), of as many groups at once as there is room for."""
    groups, size = mean.shape
    components, singular = [], []
    several = max(1, _HELD // size**2)
    for first in range(0, groups, several):
        chosen = range(first, min(first + several, groups))
        squares = mean.new_zeros(len(chosen), size, size)
        for centred, group in _centred(batches, mean):
            for square, own in zip(squares, chosen, strict=True):
                rows = centred[:, group == own].flatten(0, 1)
                square += rows.T @ rows
        values, vectors = torch.linalg.eigh(squares)  # rising
        components.append(vectors.flip(2)[..., :most].mT)
        singular.append(values.flip(1)[:, :most].clamp_min(0).sqrt())
    return torch.cat(components), torch.cat(singular)


def _dual(batches: Batches, mean: Tensor, count: int, most: int) -> tuple[Tensor, Tensor]:
    """By the inner products (count, count) of the vectors of the one group there is."""
    gram, first = mean.new_zeros(count, count), 0
    for held in _gathered(_centred(batches, mean)):
        start = 0
        for rows, _ in _centred(batches, mean):
            gram[first : first + len(held), start : start + len(rows)] = held @ rows[:, 0].T
            start += len(rows)
        first += len(held)
    values, left = torch.linalg.eigh(gram)  # rising
    singular = values.flip(0)[:most].clamp_min(0).sqrt()
    left = torch.where(singular > _RANK * singular[0], left.flip(1)[:, :most] / singular, 0.0)  # (count, most)
    found, start = mean.new_zeros(most, mean.shape[1]), 0
    for rows, _ in _centred(batches, mean):
        found += left[start : start + len(rows)].T @ rows[:, 0]
        start += len(rows)
    return torch.linalg.qr(found.T)[0].T[None], singular[None]  # rounding makes small components oblique


def _centred(batches: Batches, mean: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Differences from the mean (b, n, P), 0 where nothing is, and groups (n,)."""
    for vectors, group, mask in _pieces(batches):
        yield torch.where(mask, vectors.double() - mean[group], 0.0), group


def _pieces(batches: Batches) -> Iterator[Rows]:
    for vectors, group, mask in batches():
        for piece in torch.split(vectors, max(1, _HELD // max(1, mask.numel()))):
            yield piece, group, mask


def _gathered(pieces: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Vectors (b, P) of one group, as many at once as there is room for."""
    held: list[Tensor] = []
    for piece, _ in pieces:
        held.append(piece[:, 0])
        if sum(part.numel() for part in held) >= _HELD:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)
