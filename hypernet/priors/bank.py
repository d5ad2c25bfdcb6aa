"""Networks of the zoo as they are, kept in a prior, and what was asked for with each."""

from __future__ import annotations

import math
import warnings

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.errors import GenerateWarning
from paramsmith.hypernet.latents import Pairs
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params

from .arrangement import ArrangedPrior, Arrangement, Forming, Zoo, affordable, latent_of, networks

_MOST, _LEAST = 1024, 16  # networks that are kept unless told otherwise
_TOGETHER = 1 << 26  # numbers that these have


class Members(Params):
    """Options of every prior that keeps networks."""

    members: int | None = Field(
        None, ge=1, le=1_000_000, description="networks that are kept; else 1024, or 256 MB of them, but 16 at least"
    )


class BankPrior(ArrangedPrior):
    """A prior that keeps up to `members` networks of the zoo: their latents (M, L, D), and their codes.

    `codes` (M, 1 + classes, d): the mean over the positions, then that of each class, where they `differ`. `classes`
    (M,): how many classes a network has. Of a zoo with more networks, 1 of 2, 4, ... is kept, evenly.
    """

    latents: Tensor
    codes: Tensor
    classes: Tensor
    count: Tensor
    differ: Tensor

    def __init__(self, options: Members, site: Site, prior: str, *, codes: bool) -> None:
        super().__init__()
        length, numbers = latent_of(site, prior)
        width = site.width if codes else 0
        of_classes = (site.spec.classes or 0) if site.spec is not None and codes else 0
        size = length * numbers + (1 + of_classes) * width
        most = options.members or min(_MOST, max(_LEAST, _TOGETHER // size))
        affordable(most * size, prior, "keep fewer, with members=, or use a codec such as pca")
        self.register_buffer("latents", torch.zeros(most, length, numbers))
        self.register_buffer("codes", torch.zeros(most, 1 + of_classes, width))
        self.register_buffer("classes", torch.zeros(most, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("differ", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """Keep networks. InvalidInput for a zoo without any; a warning where not all are kept."""
        form = Forming(self.latents.shape[1])
        seen, step, kept = 0, 1, 0
        self.differ.fill_(False)
        for batch in networks(pairs):
            here = Arrangement.of(batch.places)
            form.see(here)
            for i in range(len(batch.latent)):
                if kept == len(self.latents) and seen % step == 0:
                    kept, step = self._thin(), 2 * step
                if seen % step == 0:
                    self._keep(kept, batch, i, here)
                    kept += 1
                seen += 1
        self.take_form(form)
        self.count.fill_(kept)
        if kept < seen:
            told = f"the prior keeps {kept:,} of {seen:,} networks: it is given members={len(self.latents)}"
            warnings.warn(told, GenerateWarning, stacklevel=2)

    def in_turn(self, member: Tensor, here: Arrangement) -> Tensor:
        """Which row of a member (..., L) stands at each position; one with fewer classes gives its rows in turn."""
        place = torch.arange(len(here.order), device=member.device)
        by_class = place - here.fixed
        each = max(1, here.each)
        classes = self.classes[member].clamp_min(1)
        row = here.fixed + (by_class // each) % classes * each + by_class % each
        return torch.where(by_class < 0, place, row)

    def any_member(self, noise: Tensor) -> Tensor:
        """Members, each as likely, by numbers from N(0, 1)."""
        share = (1 + torch.erf(noise.double() / math.sqrt(2))) / 2
        return (share * self.count).long().clamp_max(int(self.count) - 1)

    def _thin(self) -> int:
        """Every second of those that are kept."""
        half = (len(self.latents) + 1) // 2
        for held in (self.latents, self.codes, self.classes):
            held[:half] = held[::2].clone()
        return half

    def _keep(self, place: int, batch: Pairs, i: int, here: Arrangement) -> None:
        ordered = batch.latent[i, here.order][: self.latents.shape[1]]
        several = (len(ordered) - here.fixed) // here.each if here.each else 0
        self.latents[place] = 0
        self.latents[place, : here.fixed + several * here.each] = ordered[: here.fixed + several * here.each]
        self.codes[place] = 0
        if self.codes.shape[2]:
            whole, by_class = codes_of(batch.asked[i : i + 1], here)
            several = min(several, self.codes.shape[1] - 1)
            self.codes[place, 0] = whole[0]
            self.codes[place, 1 : 1 + several] = by_class[0, :several]
            if bool((by_class != by_class[:, :1]).any()):
                self.differ.fill_(True)
        self.classes[place] = several


def codes_of(asked: Tensor, here: Arrangement) -> tuple[Tensor, Tensor]:
    """Of (B, L or 1, d) the mean over the positions, (B, d), and the code of each class, (B, classes, d)."""
    if asked.shape[1] == 1:
        return asked[:, 0], asked.expand(-1, here.classes, -1)
    return asked.mean(1), here.split(asked)[1][:, :, 0] if here.each else asked[:, :0]
