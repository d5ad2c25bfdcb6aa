"""A layout that codecs can be tested with: only places, width and spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.layout import Layout

FEATURES = 6


@dataclass(frozen=True)
class StubLayout:
    spec: TargetSpec
    width: int
    places: Places

    def __len__(self) -> int:
        return len(self.places)


def rows(classes: int = 3, hidden: int = 4, inputs: int = 7, *, padding: int = 0) -> Layout:
    """`hidden` full tokens of the first tensor, `classes` of the head with fewer numbers, and tokens of padding."""
    slots = (
        Slot("body", (hidden, inputs), "F32", "matrix", inputs),
        Slot("head", (classes, hidden), "F32", "head", hidden, class_axis=0),
    )
    count = hidden + classes + padding
    of = torch.tensor([0] * hidden + [1] * classes + [-1] * padding)
    numbers = torch.tensor([inputs] * hidden + [hidden] * classes + [0] * padding)
    none = [-1] * padding
    number = torch.tensor([-1] * hidden + [*range(classes)] + none)
    features = torch.sin(torch.arange(count)[:, None] * torch.arange(1, FEATURES + 1) * 0.7)
    mask = torch.arange(inputs) < numbers[:, None]
    return cast(Layout, StubLayout(TargetSpec(slots), inputs, Places(features, number, of, mask)))


def site(layout: Layout, **more: Any) -> Site:
    return Site(8, layout.spec, layout=layout, **more)


def networks(layout: Layout, count: int, seed: int = 0, rank: int = 3) -> Tensor:
    """Tokens (count, N, T) that vary in a few directions, with a little noise; numbers that are padding are 0."""
    rng = torch.Generator().manual_seed(seed)
    shape = layout.places.mask.shape
    directions = torch.randn(rank, *shape, generator=torch.Generator().manual_seed(99))
    found = torch.einsum("br,rnt->bnt", torch.randn(count, rank, generator=rng), directions)
    found = found + 0.01 * torch.randn(count, *shape, generator=rng) + 0.3
    return torch.where(layout.places.mask, found, 0.0)


def batches(layout: Layout, tokens: Tensor, size: int = 7) -> Any:
    """What `fit` reads."""
    return lambda: ((part, layout) for part in tokens.split(size))
