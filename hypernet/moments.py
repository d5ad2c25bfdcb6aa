"""Mean and variance of what streams by, in fp64, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of `count` numbers an entry: the mean, and the sum of squared differences from it, in fp64."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor, axes: Sequence[int] = (0,), keep: bool = False) -> Moments:
        """Over some axes, which stay with length 1 where they are to be kept."""
        wide = values.detach().double()
        mean = wide.mean(tuple(axes), keepdim=True)
        squares = (wide - mean).square_().sum(tuple(axes), keepdim=keep)
        return cls(prod(values.shape[axis] for axis in axes), mean if keep else mean.squeeze(tuple(axes)), squares)

    def with_more(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque, 1979): what lies between their means counts too."""
        count, gap = self.count + other.count, other.mean - self.mean
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
