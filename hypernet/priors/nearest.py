"""The network of the zoo that was asked for with the nearest condition; or for each class the nearest row."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.parts import priors

from .arrangement import Arrangement, Zoo
from .bank import BankPrior, Members, codes_of


class Nearest(Members):
    """Options of the prior `nearest`."""

    neighbours: int = Field(1, ge=1, le=1024, description="how many of the nearest are averaged")
    standardise: bool = Field(
        False, description="whether each number of a code is divided by its deviation over the zoo"
    )


@priors("nearest", Nearest)
class NearestPrior(BankPrior):
    """The latent of the network whose code is nearest to what is asked for: retrieval.

    Where codes tell classes apart, each class gets the row of the nearest class of all networks, whichever it is of;
    other positions go by the mean code. Of equally near ones the first counts. Nothing is random.
    """

    spread: Tensor

    def __init__(self, options: Nearest, site: Site, prior: str = "nearest") -> None:
        super().__init__(options, site, prior, codes=True)
        self.neighbours, self.standardise = options.neighbours, options.standardise
        self.register_buffer("spread", torch.ones(2, site.width))  # of whole networks' codes, and of classes'

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """Keep networks and their codes. InvalidInput for a zoo without any; a warning where not all are kept."""
        super().fit(pairs)
        if self.standardise:
            for kind, codes in enumerate((self._whole(), self._by_class()[0])):
                std = codes.double().std(0, correction=0) if len(codes) else torch.ones_like(self.spread[kind])
                self.spread[kind] = torch.where(std > 0, std, 1.0)

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D)."""
        here = self.arrangement(places)
        return torch.where(places.mask, here.back(self._retrieved(asked, here)), 0.0)

    def _retrieved(self, asked: Tensor, here: Arrangement) -> Tensor:
        """In the order of the arrangement."""
        whole, by_class = codes_of(asked, here)
        member = self._closest(whole, self._whole(), 0)[..., None]  # (B, k, 1)
        found = self.latents[member, self.in_turn(member, here)].mean(1)  # (B, L, D)
        if here.each and self.differ:
            codes, number, row = self._by_class()
            closest = self._closest(by_class, codes, 1)  # (B, classes, k)
            first = here.fixed + row[closest] * here.each
            place = first[..., None] + torch.arange(here.each, device=first.device)  # (B, classes, k, each)
            rows = self.latents[number[closest][..., None], place].mean(2)  # (B, classes, each, D)
            found = torch.cat([found[:, : here.fixed], rows.flatten(1, 2)], 1)
        return found

    def _closest(self, asked: Tensor, codes: Tensor, kind: int) -> Tensor:
        """The nearest of codes (n, d) to each of (B, ..., d), in order: (B, ..., k)."""
        spread = self.spread[kind]
        flat = (asked / spread).flatten(0, -2)
        gaps = torch.cdist(flat, codes / spread, compute_mode="donot_use_mm_for_euclid_dist")
        ordered = gaps.sort(dim=1, stable=True)[1][:, : self.neighbours]
        return ordered.reshape(*asked.shape[:-1], -1)

    def _whole(self) -> Tensor:
        return self.codes[: int(self.count), 0]

    def _by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """The codes of all classes of all networks (n, d), which network each is of, and which class (n,)."""
        several = torch.arange(self.codes.shape[1] - 1, device=self.classes.device)
        number, row = (several < self.classes[: int(self.count), None]).nonzero(as_tuple=True)
        return self.codes[number, 1 + row], number, row
