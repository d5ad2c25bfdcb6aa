"""Where latents stand, and noise for them, without a codec or a sampler: for the tests of priors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from paramsmith.hypernet.denoisers import token_dit
from paramsmith.hypernet.latents import Noise, Pairs, Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import normal

FEATURES, WIDTH = 6, 16


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer that is trained in a second."""
    monkeypatch.setitem(token_dit.SIZES, "tiny", (32, 2, 2))


def site_of(length: int, numbers: int, features: int = FEATURES) -> Site:
    return Site(WIDTH, latent=(length, numbers), features=features)


def places_of(length: int, numbers: int, features: int = FEATURES) -> Places:
    """Each position has features of its own; nothing is padding."""
    told = normal(7, "features", (length, features))
    return Places(told, torch.arange(length), torch.full((length,), -1), torch.ones(length, numbers, dtype=torch.bool))


def alike(places: Places) -> Places:
    """All positions with the same features, as rows of a head have them."""
    return Places(places.features[:1].expand_as(places.features), places.classes, places.slots, places.mask)


def noise_of(seeds: Sequence[int]) -> Noise:
    return lambda key, shape: torch.stack([normal(seed, key, shape) for seed in seeds])


def woken(module: nn.Module) -> nn.Module:
    """With no parameter left at the 0 that it starts with."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def paired(latent: Tensor, asked: Tensor, places: Places, size: int = 4) -> Callable[[], Iterator[Pairs]]:
    """Batches of a zoo."""

    def batches() -> Iterator[Pairs]:
        for start in range(0, len(latent), size):
            rows = range(start, min(start + size, len(latent)))
            yield Pairs(latent[rows.start : rows.stop], asked[rows.start : rows.stop], places, tuple(rows))

    return batches


def trained(prior: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]], places: Places, steps: int) -> list[float]:
    """The losses of a training by Adam, seeded."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(prior.parameters(), lr=2e-3, fused=True)
    losses = []
    for _ in range(steps):
        loss = prior.loss(*draw(), places)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses
