"""Mean and variance of every position over a zoo that streams by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrangement import Arrangement, Forming, Zoo, networks


@dataclass(frozen=True)
class Moments:
    """Of `count` networks: means (K, D), and sums of squared differences from them (K, D), in fp64."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Those of (n, K, D)."""
        values = values.double()
        mean = values.mean(0)
        return cls(len(values), mean, (values - mean).square().sum(0))

    def with_more(self, other: Moments) -> Moments:
        """Those of both together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        gap = other.mean - self.mean
        squares = self.squares + other.squares + gap.square() * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), squares)

    def pooled(self, classes: int) -> Moments:
        """The rows of all classes as rows of one: (classes * each, D) -> (each, D)."""
        numbers = self.mean.shape[1]
        mean = self.mean.reshape(classes, -1, numbers)  # (classes, each, D)
        middle = mean.mean(0)
        between = self.count * (mean - middle).square().sum(0)
        within = self.squares.reshape(classes, -1, numbers).sum(0)
        return Moments(self.count * classes, middle, within + between)

    @property
    def std(self) -> Tensor:
        """Of a population (K, D)."""
        return (self.squares / self.count).sqrt()


def zoo_moments(pairs: Zoo, most: int) -> tuple[Forming, Tensor, Tensor]:
    """How the zoo is arranged, and mean and standard deviation (K, D) of its positions, K no more than `most`.

    InvalidInput for a zoo without networks.
    """
    form = Forming(most)
    fixed: Moments | None = None
    rows: Moments | None = None
    for batch in networks(pairs):
        here = Arrangement.of(batch.places)
        joined = form.see(here)
        rows = rows.pooled(joined) if rows is not None and joined else rows
        plain, by_class = here.split(batch.latent)
        fixed = _more(fixed, Moments.of(plain))
        if here.each:
            rows = _more(rows, Moments.of(by_class.flatten(1, 2) if form.classes else by_class.flatten(0, 1)))
    parts = [part for part in (fixed, rows) if part is not None]
    return form, torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])


def _more(held: Moments | None, found: Moments) -> Moments:
    return found if held is None else held.with_more(found)
