"""The nearest-prototype classifier as a head: weights in closed form, from features of a few examples of each class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params
from paramsmith.parts import priors

from .arrangement import ArrangedPrior, Arrangement, Forming, Zoo, latent_of, networks

_HINT = "use the layout row, the codec identity, no normaliser, and the encoder prototypes"


class Prototype(Params):
    """Options of the prior `prototype`."""

    scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="length of a row over that of its prototype; else as in the zoo"
    )


@priors("prototype", Prototype, paper="arXiv:1703.05175")
class PrototypePrior(ArrangedPrior):
    """w_c = s · m_c and b_c = -s · |m_c|² / 2, with the mean feature m_c of class c as its code.

    So that w_c · x + b_c = s (|x|² - |x - m_c|²) / 2: the class of the nearest mean. s is an option, or what makes the
    weights come nearest to those of the zoo, rows and means without their mean over classes. Positions are rows of F
    weights, with or without a bias behind them, and codes have the width F: any other site is InvalidInput.

    Paper: Prototypical Networks for Few-shot Learning, arXiv:1703.05175.
    """

    scale: Tensor

    def __init__(self, options: Prototype, site: Site) -> None:
        super().__init__()
        _, numbers = latent_of(site, "prototype")
        if numbers not in (site.width, site.width + 1):
            fact = f"the prior 'prototype' makes rows of {site.width:,} weights and a bias, not of {numbers:,} numbers"
            raise InvalidInput(fact, _HINT)
        self.chosen = options.scale
        self.register_buffer("scale", torch.tensor(options.scale or 1.0))

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """The scale, where no option says it. InvalidInput where rows of the zoo do not point to their prototypes."""
        along, length = 0.0, 0.0
        form = Forming(0)
        for batch in networks(pairs):
            here = Arrangement.of(batch.places)
            self._check(batch.asked, here)
            form.see(here)
            means = _centred(here.split(batch.asked)[1][:, :, 0])  # (B, classes, F)
            rows = _centred(here.split(batch.latent)[1][:, :, 0, : means.shape[2]])
            along += float((rows * means).sum())
            length += float(means.square().sum())
        self.take_form(form)
        if self.chosen is None:
            if along <= 0:
                raise InvalidInput("the heads of the zoo do not point to the means of their classes", "give the scale")
            self.scale.fill_(along / length)

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D)."""
        here = self.arrangement(places)
        self._check(asked, here)
        means = here.split(asked)[1][:, :, 0]  # (B, classes, F)
        bias = -means.square().sum(2, keepdim=True) / 2
        drawn = self.scale * torch.cat([means, bias], 2)[:, :, : places.mask.shape[1]]
        return torch.where(places.mask, here.back(drawn), 0.0)

    def _check(self, asked: Tensor, here: Arrangement) -> None:
        if here.fixed or here.each != 1:
            raise InvalidInput("the prior 'prototype' makes a head alone, one row a class", _HINT)
        if asked.shape[1] != len(here.order):
            raise InvalidInput("one code for all classes makes no prototypes", _HINT)


def _centred(held: Tensor) -> Tensor:
    """Without the mean over classes, which a softmax does not see."""
    held = held.double()
    return held - held.mean(1, keepdim=True)
