"""A network of the zoo with noise on top."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.parts import priors

from .nearest import Nearest, NearestPrior


class NoiseCopy(Nearest):
    """Options of the prior `noise_copy`."""

    amplitude: float = Field(0.05, ge=0, allow_inf_nan=False, description="size of the noise, relative to the numbers")
    of: Literal["nearest", "random"] = Field("nearest", description="what is copied")


@priors("noise_copy", NoiseCopy, paper="arXiv:2506.07998")
class NoiseCopyPrior(NearestPrior):
    """z = copy + amplitude · rms(copy) · noise: what shows whether a sampler's samples are new and good.

    The copy is what `nearest` gives, or a random network of the zoo. The root of the mean square is that of a position.

    Paper: Generative Modeling of Weights: Generalization or Memorization?, arXiv:2506.07998.
    """

    def __init__(self, options: NoiseCopy, site: Site) -> None:
        super().__init__(options, site, "noise_copy")
        self.amplitude, self.of = options.amplitude, options.of

    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L, D)."""
        here = self.arrangement(places)
        if self.of == "nearest":
            copy = self._retrieved(asked, here)
        else:
            member = self.any_member(noise("noise_copy member", (1,)))  # (B, 1)
            copy = self.latents[member, self.in_turn(member, here)]
        mask = here.arranged(places.mask[None])
        copy = torch.where(mask, copy, 0.0)
        size = (copy.square().sum(2) / mask.sum(2).clamp_min(1)).sqrt()  # (B, L)
        drawn = copy + self.amplitude * size[..., None] * noise("noise_copy", tuple(copy.shape[1:]))
        return torch.where(places.mask, here.back(drawn), 0.0)
