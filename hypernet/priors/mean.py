"""The mean of the zoo."""

from __future__ import annotations

import torch
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params
from paramsmith.parts import priors

from .arrangement import ArrangedPrior, Zoo, affordable, latent_of
from .moments import zoo_moments


class Mean(Params):
    """Options of the prior `mean`: none."""


@priors("mean", Mean)
class MeanPrior(ArrangedPrior):
    """The mean latent of the zoo, whatever is asked for: what a regressor comes to that learns nothing.

    Networks that differ in their number of classes share one row for all classes, the mean over all rows.
    """

    mean: Tensor

    def __init__(self, options: Mean, site: Site) -> None:
        super().__init__()
        length, numbers = latent_of(site, "mean")
        affordable(length * numbers, "mean", "use a codec such as pca")
        self.register_buffer("mean", torch.zeros(length, numbers))

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """The mean, in fp64. InvalidInput for a zoo without networks."""
        form, mean, _ = zoo_moments(pairs, len(self.mean))
        self.take_form(form)
        self.mean[: len(mean)] = mean.to(self.mean)

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D), all the same."""
        here = self.arrangement(places)
        drawn = self.at(self.mean, here).expand(len(asked), -1, -1)
        return torch.where(places.mask, here.back(drawn), 0.0)
