"""Kernel density: a network of the zoo, or pieces of several, with noise of the kernel's width."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.parts import priors

from .arrangement import Zoo
from .bank import BankPrior, Members

_TOGETHER = 1 << 22  # numbers whose deviation is found at once


class Kde(Members):
    """Options of the prior `kde`."""

    per: Literal["network", "position", "number"] = Field("position", description="what is of one network of the zoo")
    bandwidth: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="width of the kernel, in standard deviations; else n^(-1/5)"
    )


@priors("kde", Kde, paper="arXiv:2406.09997")
class KdePrior(BankPrior):
    """z = z_m + bandwidth · std · noise with m drawn from the zoo: samples of a kernel density estimate.

    m is drawn anew for every position (SANE), for every number, or once for the network. Whatever is asked for. The
    deviation is that of a number over the zoo, and n^(-1/5), for n networks, is Scott's rule for one number. Rows of a
    class come from rows of that class; a network with fewer classes gives its rows in turn.

    Paper: Towards Scalable and Versatile Weight Space Learning (SANE), arXiv:2406.09997.
    """

    std: Tensor

    def __init__(self, options: Kde, site: Site) -> None:
        super().__init__(options, site, "kde", codes=False)
        self.per, self.bandwidth = options.per, options.bandwidth
        self.register_buffer("std", torch.zeros(self.latents.shape[1:]))

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """Keep networks. InvalidInput for a zoo without any; a warning where not all are kept."""
        super().fit(pairs)
        fixed, each, _ = (int(n) for n in self.form)
        held = self.latents[: int(self.count)]
        length = fixed + each * self.classes[: int(self.count)]  # (M,)
        several = max(1, _TOGETHER // max(1, held[:, 0].numel()))
        for start in range(0, held.shape[1], several):
            values = held[:, start : start + several].double()  # (M, l, D)
            place = torch.arange(start, start + values.shape[1], device=length.device)
            there = (place < length[:, None])[..., None]  # (M, l, 1)
            count = there.sum(0).clamp_min(1)
            mean = torch.where(there, values, 0.0).sum(0) / count
            squares = torch.where(there, (values - mean).square(), 0.0).sum(0)
            self.std[start : start + several] = (squares / count).sqrt().to(self.std)

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D)."""
        here = self.arrangement(places)
        shape = tuple(places.mask.shape)
        draws = {"network": (1, 1), "position": (shape[0], 1), "number": shape}[self.per]
        member = self.any_member(noise("kde member", draws))  # (B, 1 or L, 1 or D)
        place = self.in_turn(member.transpose(1, 2), here).transpose(1, 2)  # (B, L, 1 or D)
        number = torch.arange(shape[1], device=member.device)
        width = int(self.count) ** -0.2 if self.bandwidth is None else self.bandwidth
        drawn = self.latents[member, place, number] + width * self.std[place, number] * noise("kde", shape)
        return torch.where(places.mask, here.back(drawn), 0.0)
