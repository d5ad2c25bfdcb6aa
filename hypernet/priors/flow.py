"""Flow matching: noise moves to latents along straight lines."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.parts import priors

from .denoising import Denoising, DenoisingPrior, masked_error


class Flow(Denoising):
    """Options of the prior `flow`."""

    steps: int = Field(10, ge=1, le=10_000, description="steps of sampling")


@priors("flow", Flow, paper="arXiv:2210.02747")
class FlowPrior(DenoisingPrior):
    """Conditional flow matching: a network learns the velocity of the straight lines between noise and latents.

    With z a standardised latent, e noise from N(0, 1) and s = sigmoid(n), n of N(0, 1):

        x_s = (1 - s) z + s e            loss = mean ‖v(x_s, s, asked) - (e - z)‖²

    Sampling goes from x_1 = e to x_0 by Euler steps x <- x + (s' - s) v on s = 1, 1 - 1/n, ..., 1/n, 0: the sigmas that
    diffusers' FlowMatchEulerDiscreteScheduler(shift=1) has, given 1, ..., 1/n. The noise of a sample is its `x`.

    Papers: Flow Matching for Generative Modeling, arXiv:2210.02747; the density of s: Scaling Rectified Flow
    Transformers, arXiv:2403.03206.
    """

    def __init__(self, options: Flow, site: Site) -> None:
        super().__init__(options, site)
        self.steps = options.steps

    def loss(self, latent: Tensor, asked: Tensor, places: Places) -> Tensor:
        """Latents (B, L, D), asked (B, L or 1, d) -> the mean over all that is not padding."""
        data = self.standard(latent)
        noise = torch.randn_like(data)
        time = torch.randn(len(data), device=data.device).sigmoid()
        noisy = torch.lerp(data, noise, time[:, None, None])
        velocity = self.denoiser(noisy, time, self.null.dropped(asked, len(data)), places)
        return masked_error(velocity, noise - data, places)

    @torch.no_grad()
    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L or 1, d) -> latents (B, L, D)."""
        steps = how.steps or self.steps
        x = noise("x", tuple(places.mask.shape))
        for step in range(steps):
            velocity = self.predicted(x, 1 - step / steps, asked, places, how.guidance)
            x = x - velocity / steps
        return self.restored(x, places)
