"""What passes between tokens, codecs and priors of a sampler: where a latent stands, and the random numbers it is of.

tokens  (B, N, T)     a network in pieces of T numbers (tokens/)
latent  (B, L, D)     what a codec makes of them, and what a prior draws
asked   (B, L, d)     codes of the condition, one a position of the latent; (B, 1, d) where all share one
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput

if TYPE_CHECKING:
    from .tokens.layout import Layout

MOST_STEPS = 10_000

Noise: TypeAlias = Callable[[str, Sequence[int]], Tensor]  # key, shape -> (B, *shape) of N(0, 1), a seed a sample


@dataclass(frozen=True)
class Places:
    """What is known of each of L positions, whatever stands there.

    `features`: (L, F) fp32, of a size near 1. `classes`: (L,) int64, the class that a position belongs to, or -1.
    `slots`: (L,) int64, the number of its tensor among the slots of the target, or -1 where it stands for several.
    `mask`: (L, D) bool, False where a position is only padding.
    """

    features: Tensor
    classes: Tensor
    slots: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device) -> Places:
        """The same on a device."""
        return Places(*(held.to(device) for held in (self.features, self.classes, self.slots, self.mask)))


@dataclass(frozen=True)
class Pairs:
    """A batch of one architecture: latents (B, L, D) of trained networks, and what was asked for, (B, L or 1, d).

    `members` are their numbers in the zoo, in the order of those to train on.
    """

    latent: Tensor
    asked: Tensor
    places: Places
    members: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How a prior draws: steps (None: its own number), and guidance w: null + w (asked - null); 1 is none.

    InvalidInput for numbers out of range.
    """

    steps: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        """Look at the numbers."""
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise InvalidInput(f"{self.steps:,} steps of sampling", f"give a number from 1 to {MOST_STEPS:,}")
        if not 0 <= self.guidance < math.inf:  # NaN is not either
            raise InvalidInput(f"a guidance of {self.guidance:g}", "give a finite number, 0 or more; 1 is none")


PLAIN = Sampling()


def plainly(who: str, how: Sampling) -> None:
    """InvalidInput for what draws in one way only, and is asked for another."""
    if how.steps is not None:
        raise InvalidInput(f"{who} takes no number of steps", "leave --steps out")
    if how.guidance != 1:
        raise InvalidInput(f"{who} knows no guidance", "leave --guidance out")


class Codec(Protocol):
    """Tokens as latents, and back. An `nn.Module`, made as `make(options, site)` with `site.layout`.

    One that is trained has `loss(tokens (B, N, T), layout) -> scalar`, which may draw from torch's global generator;
    one that is computed has `fit(batches)`, where `batches()` iterates over (tokens (B, N, T), layout) of the zoo.
    """

    def places(self, layout: Layout) -> Places:
        """Where the positions of a latent of this layout stand; `mask` has its shape (L, D)."""
        ...

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) -> (B, L, D)."""
        ...

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, L, D) -> (B, N, T)."""
        ...


class Prior(Protocol):
    """What draws latents. An `nn.Module`, made as `make(options, site)` with `site.latent` = (L, D), `site.width` = d.

    L may differ from call to call, with the number of classes. One that is trained has
    `loss(latent, asked, places) -> scalar`, which may draw from torch's global generator. One that can be told how to
    draw has `check_sampling(how)`, which raises InvalidInput for what it cannot do; others are never told.
    """

    def fit(self, pairs: Callable[[], Iterator[Pairs]]) -> None:
        """Before any training of the prior: statistics, or all there is to it. What is kept must be buffers."""
        ...

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """Latents (B, L, D). Everything random is from `noise`; a sample does not depend on what else is in B."""
        ...
