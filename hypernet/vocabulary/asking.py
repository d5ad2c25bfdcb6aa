"""Asking a trained hypernetwork for rows, and holding what it says against the truth and the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.protocols import Condition

from .baselines import BASELINES
from .data import Vocabulary, condition_of
from .words import Bags

_AT_ONCE = 256


def predicted(hypernetwork: Hypernetwork, condition: Condition) -> Tensor:
    """Coordinates (B, rank) of the rows of these sets of words."""
    coordinates = getattr(hypernetwork.decoder, "coordinates", None)
    if not callable(coordinates):
        raise InvalidInput("this generator makes no embedding rows", "train one: paramsmith train hyperofa")
    codes = hypernetwork.encoder(condition, hypernetwork.target(None))  # (B, 1, d)
    return cast(Tensor, coordinates(codes))[:, 0]


def primitives_of(hypernetwork: Hypernetwork) -> Tensor:
    """What makes rows of coordinates, (rank, columns)."""
    found = getattr(hypernetwork.decoder, "primitives", None)
    if not isinstance(found, Tensor):
        raise InvalidInput("this generator makes no embedding rows", "train one: paramsmith train hyperofa")
    return found.detach().cpu()


@torch.no_grad()
def coordinates_of(hypernetwork: Hypernetwork, vectors: Tensor, bags: Bags) -> Tensor:
    """Coordinates (bags, rank) of the rows of all these bags, asked for in batches of about equal sizes."""
    primitives = primitives_of(hypernetwork)
    made = torch.empty(len(bags), len(primitives))
    device = next(hypernetwork.parameters()).device
    trains = hypernetwork.training
    hypernetwork.eval()
    with one_thread_an_operation():
        for chosen in torch.split(bags.sizes.argsort(stable=True), _AT_ONCE):
            condition = condition_of(bags, vectors, chosen)
            made[chosen] = predicted(hypernetwork, {name: held.to(device) for name, held in condition.items()}).cpu()
    hypernetwork.train(trains)
    return made


@dataclass(frozen=True)
class Nearness:
    """How near made rows are to the true ones: mean cosine, and mean |made - true| / mean |true|."""

    cosine: float
    error: float

    @classmethod
    def of(cls, made: Tensor, truth: Tensor) -> Nearness:
        """(rows, columns) both."""
        cosine = torch.cosine_similarity(made.double(), truth.double(), dim=1).mean()
        error = (made - truth).double().abs().mean() / truth.double().abs().mean()
        return cls(float(cosine), float(error))


def judged(
    known: Vocabulary, bags: Bags, truth: Tensor, hypernetwork: Hypernetwork | None = None
) -> Mapping[str, Nearness]:
    """How near each method comes to `truth`, the true rows (bags, columns) of tokens that are not among the known.

    By name: `hyperofa` first where there is one, the baselines, and `ceiling`, the truth as far as primitives reach.
    """
    made = {} if hypernetwork is None else {"hyperofa": coordinates_of(hypernetwork, known.vectors, bags)}
    made |= {name: baseline(known, bags) for name, baseline in BASELINES.items()}
    made["ceiling"] = truth @ inverse(known.primitives)
    return {name: Nearness.of(found @ known.primitives, truth) for name, found in made.items()}


def inverse(primitives: Tensor, weight: Tensor | None = None) -> Tensor:
    """What makes the best coordinates of a row, (columns, rank): the pseudo-inverse, columns counting by `weight`."""
    wide = primitives.double()
    with one_thread_an_operation():
        even = torch.ones(wide.shape[1], dtype=torch.float64) if weight is None else weight
        found: Tensor = even[:, None] * torch.linalg.pinv(wide * even)
    return found.float()
