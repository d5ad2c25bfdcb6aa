"""A normal distribution for every number of a latent."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params
from paramsmith.parts import priors

from .arrangement import ArrangedPrior, Zoo, affordable, latent_of
from .moments import zoo_moments


class Gaussian(Params):
    """Options of the prior `gaussian`."""

    spread: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor on the standard deviations")


@priors("gaussian", Gaussian, paper="arXiv:2406.09413")
class GaussianPrior(ArrangedPrior):
    """z = mean + spread · std · noise, each number by itself, whatever is asked for.

    With the codec `pca` it is weights2weights' model of a space of weights, the baseline for zoos of one kind. Networks
    that differ in their number of classes share mean and deviation of a row among all classes.

    Paper: Interpreting the Weight Space of Customized Diffusion Models, arXiv:2406.09413.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, options: Gaussian, site: Site) -> None:
        super().__init__()
        length, numbers = latent_of(site, "gaussian")
        affordable(2 * length * numbers, "gaussian", "use a codec such as pca")
        self.spread = options.spread
        self.register_buffer("mean", torch.zeros(length, numbers))
        self.register_buffer("std", torch.zeros(length, numbers))

    @torch.no_grad()
    def fit(self, pairs: Zoo) -> None:
        """Means and deviations, in fp64. InvalidInput for a zoo without networks."""
        form, mean, std = zoo_moments(pairs, len(self.mean))
        self.take_form(form)
        self.mean[: len(mean)] = mean.to(self.mean)
        self.std[: len(std)] = std.to(self.std)

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D)."""
        here = self.arrangement(places)
        mean = self.at(self.mean, here)
        if self.foreign(here):  # a row stands for those of all classes: what lay between them counts too
            std = (self.at(self.mean.square() + self.std.square(), here) - mean.square()).clamp_min(0).sqrt()
        else:
            std = self.at(self.std, here)
        drawn = mean + self.spread * std * noise("gaussian", tuple(mean.shape))
        return torch.where(places.mask, here.back(drawn), 0.0)
