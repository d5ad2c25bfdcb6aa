"""Steps over the weights of one sample, one after the other, and what each of them changed.

    weights, told = finish(weights, finite(), floored(), within(envelope))

A step takes tensors by name and gives them back, with one `Change` for each tensor that it made another or that it has
something to say of; it never writes into what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput, printable

Weights: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What a step did to a tensor, or saw in it; `count` of its numbers are others than before."""

    step: str
    name: str
    told: str
    count: int = 0


Step: TypeAlias = Callable[[Weights], tuple[dict[str, Tensor], tuple[Change, ...]]]


def finish(weights: Weights, *steps: Step) -> tuple[dict[str, Tensor], tuple[Change, ...]]:
    """All steps in this order. What a step raises ends the chain."""
    made = dict(weights)
    told: list[Change] = []
    for step in steps:
        made, changes = step(made)
        told.extend(changes)
    return made, tuple(told)


def finite() -> Step:
    """Failed, naming the tensor, where a number is not finite; nothing is changed."""

    def step(weights: Weights) -> tuple[dict[str, Tensor], tuple[Change, ...]]:
        for name, values in weights.items():
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                count = int((~torch.isfinite(values)).sum())
                fact = f"tensor {printable(name)}: {count:,} of its {values.numel():,} values are not finite"
                raise Failed(fact, "draw another sample")
        return dict(weights), ()

    return step


def floored(least: float = 1e-5) -> Step:
    """Running variances below `least` become it: max(v, least). A generated one may be small, or below 0."""
    if not least > 0:
        raise InvalidInput(f"a variance of at least {least}", "give a number above 0")

    def step(weights: Weights) -> tuple[dict[str, Tensor], tuple[Change, ...]]:
        made, told = dict(weights), []
        for name, values in weights.items():
            count = int((values < least).sum()) if name.rpartition(".")[2] == "running_var" else 0
            if count:
                made[name] = values.clamp_min(least)
                said = f"{count:,} of {values.numel():,} variances raised to {least:g}"
                told.append(Change("floor", name, said, count))
        return made, tuple(told)

    return step


@dataclass(frozen=True)
class Envelope:
    """The least and the largest Euclidean norm of each tensor among networks that are known to be good."""

    norms: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, networks: Iterable[Weights]) -> Envelope:
        """Of state dicts, one after the other. InvalidInput where there are none."""
        found: dict[str, tuple[float, float]] = {}
        for weights in networks:
            for name, values in weights.items():
                if values.is_floating_point():
                    norm = _norm(values)
                    low, high = found.get(name, (norm, norm))
                    found[name] = min(low, norm), max(high, norm)
        if not found:
            raise InvalidInput("there are no networks to take the norms of", "give at least one")
        return cls(found)


def within(envelope: Envelope, *, slack: float = 0.25, otherwise: Literal["tell", "scale", "fail"] = "tell") -> Step:
    """Tensors whose norm is below (1 - slack) the least or above (1 + slack) the largest of the envelope.

    They are told of; scaled to that bound; or Failed is raised. A tensor of zeros is never scaled, and one of which
    the envelope knows nothing is left alone.
    """
    if not 0 <= slack < 1:
        raise InvalidInput(f"a slack of {slack}", "give 0 or more, and less than 1")

    def step(weights: Weights) -> tuple[dict[str, Tensor], tuple[Change, ...]]:
        made, told = dict(weights), []
        for name, values in weights.items():
            if name not in envelope.norms:
                continue
            low, high = (bound * factor for bound, factor in zip(envelope.norms[name], _around(slack), strict=True))
            norm = _norm(values)
            if low <= norm <= high:
                continue
            said = f"norm {norm:.4g}, and those that are known have {low:.4g} to {high:.4g}"
            if otherwise == "fail":
                raise Failed(f"tensor {printable(name)}: {said}", "draw another sample, or allow more slack")
            count = 0
            if otherwise == "scale" and norm > 0 and math.isfinite(norm):
                bound = low if norm < low else high
                made[name] = (values.double() * (bound / norm)).to(values.dtype)
                said, count = f"{said}: scaled by {bound / norm:.4g}", values.numel()
            told.append(Change("envelope", name, said, count))
        return made, tuple(told)

    return step


def _around(slack: float) -> tuple[float, float]:
    return 1 - slack, 1 + slack


def _norm(values: Tensor) -> float:
    return float(values.double().norm())
