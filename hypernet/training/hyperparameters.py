"""Hyperparameters as unconstrained numbers, which gradient descent can move anywhere, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from paramsmith.errors import InvalidInput

Kind = Literal["range", "positive", "integer"]


def stretched_sigmoid(x: Tensor, low: float, high: float) -> Tensor:
    """low + (high - low) * sigmoid(x): any number into an open interval.

    >>> stretched_sigmoid(torch.tensor([-1.0, 0.0, 2.0]), 0, 0.9)
    tensor([0.2420, 0.4500, 0.7927])
    """
    return torch.lerp(x.new_tensor(low), x.new_tensor(high), torch.sigmoid(x))  # exact at both ends


def inverse_stretched_sigmoid(value: Tensor, low: float, high: float) -> Tensor:
    """The x of a value strictly inside the interval: logit((value - low) / (high - low))."""
    return torch.logit((value - low) / (high - low))


def inverse_softplus(value: Tensor) -> Tensor:
    """The x with log(1 + exp(x)) = value, for a value above 0.

    >>> inverse_softplus(torch.tensor(0.5))
    tensor(-0.4328)
    """
    return value + torch.log(-torch.expm1(-value))


def entropy(scales: Tensor) -> Tensor:
    """The entropy of independent normal distributions with these standard deviations, over the last axis, in nats.

    sum of log(scale) + (1 + log(2 pi)) / 2.

    >>> entropy(torch.tensor([0.5, 0.5]))
    tensor(1.4516)
    """
    return (scales.log() + (1 + math.log(2 * math.pi)) / 2).sum(-1)


@dataclass(frozen=True)
class Hyperparameter:
    """One number to tune: where it starts, and which numbers it may be.

    `range`: between `low` and `high`, which it never reaches (a stretched sigmoid). `positive`: above `low` (softplus).
    `integer`: a whole number from `low` to `high`, both included (a stretched sigmoid, rounded down).
    `scale` is the first standard deviation of its perturbation, in unconstrained numbers.

    >>> rate = Hyperparameter(start=0.45, low=0, high=0.9)
    >>> rate.unconstrained(), rate.constrained(torch.tensor([-1.0, 0.0, 2.0]))
    (0.0, tensor([0.2420, 0.4500, 0.7927]))
    >>> Hyperparameter(3, low=0, high=4, kind="integer").constrained(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0., 2., 4.])
    """

    start: float
    low: float = 0.0
    high: float = 1.0
    kind: Kind = "range"
    scale: float = 0.5

    def __post_init__(self) -> None:
        inside = {
            "range": self.low < self.start < self.high,
            "positive": self.low < self.start,
            "integer": self.low <= self.start <= self.high,
        }
        if self.kind not in inside:
            raise InvalidInput(f"no kind of hyperparameter is called {self.kind!r}", f"there are {', '.join(inside)}")
        if not inside[self.kind] or not math.isfinite(self.start):
            allowed = f"above {self.low:g}" if self.kind == "positive" else f"from {self.low:g} to {self.high:g}"
            raise InvalidInput(f"a hyperparameter starts at {self.start:g}, and may be {allowed}", "start inside")
        if not self.scale > 0:
            raise InvalidInput(f"a hyperparameter is perturbed by a scale of {self.scale:g}", "give one above 0")

    def constrained(self, x: Tensor) -> Tensor:
        """The hyperparameter itself of an unconstrained number, element by element."""
        if self.kind == "positive":
            return self.low + functional.softplus(x)
        if self.kind == "range":
            return stretched_sigmoid(x, self.low, self.high)
        # the sigmoid rounds to 1 for a large x
        return stretched_sigmoid(x, self.low, self.high + 1).floor().clamp(max=self.high)

    def unconstrained(self) -> float:
        """The unconstrained number that it starts from."""
        start = torch.tensor(self.start, dtype=torch.float64)
        if self.kind == "positive":
            return float(inverse_softplus(start - self.low))
        if self.kind == "range":
            return float(inverse_stretched_sigmoid(start, self.low, self.high))
        return float(inverse_stretched_sigmoid(start + 0.5, self.low, self.high + 1))  # the middle of its unit
