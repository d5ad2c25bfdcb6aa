"""Principal components: of whole networks, or of the tokens of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.tokens.layout import Layout
from paramsmith.params import Params
from paramsmith.parts import codecs

from .positions import affordable, check_same, layout_of
from .principal import Rows, principal


class Pca(Params):
    """Options of the codec `pca`."""

    rank: int = Field(
        128, ge=1, le=4096, description="components, or half as many as there are networks if that is less"
    )
    per: Literal["network", "token"] = Field("network", description="what is one vector; a token: those of one tensor")
    whiten: bool = Field(False, description="whether coordinates are divided by their standard deviations")


@codecs("pca", Pca, paper="arXiv:2406.09413")
class PcaCodec(nn.Module):
    """z = V (x - mean), x ≈ mean + Vᵀ z, with V the first components of a zoo, computed in fp64 as it streams by.

    `network`: x are all numbers of a network, (L, D) = (1, rank), for a fixed number of classes. `token`: x is a token;
    those of one tensor share mean and components, (L, D) = (N, rank), for any number of classes.

    There are at most half as many components as networks, and never N - 1 of N: these hold every network of the zoo
    exactly, so that whatever a prior draws is an affine combination of them, and a test of reconstruction says nothing.
    Coordinates beyond are 0, and masked. InvalidInput for another number of classes, and for fewer than 3 networks.
    """

    mean: Tensor
    components: Tensor
    singular: Tensor
    count: Tensor
    samples: Tensor

    def __init__(self, options: Pca, site: Site) -> None:
        super().__init__()
        layout = layout_of(site, "pca")
        self.options = options
        self.shape = (len(layout), layout.width)
        whole = options.per == "network"
        size = prod(self.shape) if whole else layout.width
        groups = 1 if whole else 1 + len(layout.spec.slots)  # the last: tokens of several tensors
        rank = min(options.rank, size)
        affordable(groups * size * (rank + 1), "pca")
        self.register_buffer("mean", torch.zeros(groups, size))
        self.register_buffer("components", torch.zeros(groups, rank, size))
        self.register_buffer("singular", torch.zeros(groups, rank))
        self.register_buffer("count", torch.zeros(groups, dtype=torch.int64))
        self.register_buffer("samples", torch.zeros(groups, dtype=torch.int64))

    def places(self, layout: Layout) -> Places:
        """One for the whole network, which has the mean of the features; or those of the tokens."""
        held = layout.places.to(self.count.device)
        filled = torch.arange(self.singular.shape[1], device=self.count.device) < self.count[:, None]  # (G, rank)
        if self.options.per == "token":
            there = held.mask.any(1, keepdim=True)
            return Places(held.features, held.classes, held.slots, filled[self._groups(held)] & there)
        check_same(layout, self.shape, "pca")
        none = torch.full_like(held.slots[:1], -1)
        return Places(held.features.mean(0, keepdim=True), none, none, filled)

    def fit(self, batches: Callable[[], Iterator[tuple[Tensor, Layout]]]) -> None:
        """Mean and components of (B, N, T) of a zoo."""

        def rows() -> Iterator[Rows]:
            for tokens, layout in batches():
                yield self._rows(tokens, layout)

        found = principal(rows, len(self.mean), self.singular.shape[1])
        rank = found.singular.shape[1]
        for name, held in self.named_buffers():
            held.zero_()
            wanted = getattr(found, name).to(held)
            (held[:, :rank] if name in ("components", "singular") else held).copy_(wanted)

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) -> (B, 1 or N, rank)."""
        vectors, groups, mask = self._rows(tokens, layout)
        centred = torch.where(mask, vectors - self.mean[groups], 0.0)
        return self._by_group(centred, groups, lambda x, g: (x @ self.components[g].T) / self._scale(g))

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, 1 or N, rank) -> (B, N, T)."""
        if self.options.per == "network":
            check_same(layout, self.shape, "pca")
        groups = self._groups(layout.places.to(latent.device))
        made = self._by_group(latent, groups, lambda z, g: self.mean[g] + (z * self._scale(g)) @ self.components[g])
        mask = layout.places.mask.to(latent.device)
        return torch.where(mask, made.reshape(-1, *mask.shape), 0.0)

    def _scale(self, group: int) -> Tensor:
        """What a coordinate of 1 stands for (rank,)."""
        if not self.options.whiten:
            return torch.ones_like(self.singular[group])
        spread = self.singular[group] / (self.samples[group] - 1).clamp_min(1).sqrt()
        return torch.where(spread > 0, spread, 1.0)

    def _rows(self, tokens: Tensor, layout: Layout) -> Rows:
        """Vectors (B, n, P), their groups (n,), and which numbers are there (n, P)."""
        places = layout.places.to(tokens.device)
        if self.options.per == "token":
            if layout.width != self.shape[1]:
                raise InvalidInput(f"tokens have {layout.width:,} numbers, not {self.shape[1]:,}", "keep the layout")
            return tokens, self._groups(places), places.mask
        check_same(layout, self.shape, "pca")
        return tokens.flatten(1)[:, None], self._groups(places), places.mask.reshape(1, -1)

    def _groups(self, places: Places) -> Tensor:
        if self.options.per == "network":
            return places.slots.new_zeros(1)
        return places.slots.remainder(len(self.mean))  # -1 is the last

    def _by_group(self, held: Tensor, groups: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
        """`change` (B, n, ·) of each group -> (B, L, ·), each where it was."""
        if len(groups) == 1:
            return change(held, int(groups))
        own = [(groups == g).nonzero()[:, 0] for g in sorted(set(groups.tolist()))]
        made = torch.cat([change(held[:, where], int(groups[where[0]])) for where in own], 1)
        return made[:, torch.cat(own).argsort()]
