"""Diffusion: noise is taken away as it was put in, little by little, as diffusers' schedulers have it."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, cast

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import Field
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Noise, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.parts import priors

from .denoising import Denoising, DenoisingPrior, masked_error
from .stepping import DpmSolver, Prediction, ddim, ddpm, parted, spaced


class Diffusion(Denoising):
    """Options of the prior `diffusion`."""

    scheduler: Literal["ddpm", "ddim", "dpm"] = Field("ddim", description="of sampling: ancestral, DDIM, DPM-Solver++")
    steps: int = Field(25, ge=1, le=10_000, description="steps of sampling")
    times: int = Field(1000, ge=2, le=10_000, description="times of training")
    prediction: Prediction = Field("v_prediction", description="what the denoiser says: v, the noise or the latent")
    betas: Literal["linear", "scaled_linear"] = Field("linear", description="betas, or their roots, grow linearly")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="the first beta")
    beta_end: float = Field(0.02, gt=0, lt=1, description="the last beta")


@priors("diffusion", Diffusion, paper="arXiv:2006.11239")
class DiffusionPrior(DenoisingPrior):
    """Denoising diffusion: noise is put into latents step by step, and a network learns to take it away.

    With z a standardised latent, e noise from N(0, 1), a_t = (1 - b_1) ... (1 - b_t), t a time,

        x_t = √a_t z + √(1 - a_t) e      loss = mean ‖f(x_t, t, asked) - y‖²,  y = √a_t e - √(1 - a_t) z, e or z

    Sampling starts from the noise `x` and goes through evenly spaced times, the last of training first. `ddpm` is
    ancestral, with the variance of the posterior, and takes the noise `step i` at its i-th step; DDIM and DPM-Solver++
    (order 2) take none. No sample is clipped or thresholded: weights have no bounds. InvalidInput for more steps than
    times.

    Papers: Denoising Diffusion Probabilistic Models, arXiv:2006.11239; DDIM, arXiv:2010.02502; DPM-Solver++,
    arXiv:2211.01095; v: Progressive Distillation, arXiv:2202.00512.
    """

    def __init__(self, options: Diffusion, site: Site) -> None:
        super().__init__(options, site)
        self.options = options
        self._enough(options.steps)

    @cached_property
    def schedule(self) -> DDPMScheduler:
        """The times of training; made when it is needed, as a prior may be built without memory."""
        made: DDPMScheduler = DDPMScheduler(
            num_train_timesteps=self.options.times,
            beta_start=self.options.beta_start,
            beta_end=self.options.beta_end,
            beta_schedule=self.options.betas,
            prediction_type=self.options.prediction,
            timestep_spacing="trailing",
            clip_sample=False,
            thresholding=False,
        )
        return made

    @cached_property
    def alphas(self) -> list[float]:
        """a_t of every time."""
        found: list[float] = self.schedule.alphas_cumprod.double().tolist()
        return found

    def loss(self, latent: Tensor, asked: Tensor, places: Places) -> Tensor:
        """Latents (B, L, D), asked (B, L or 1, d) -> the mean over all that is not padding."""
        data = self.standard(latent)
        noise = torch.randn_like(data)
        time = torch.randint(self.options.times, (len(data),), device=data.device)
        times = cast(torch.IntTensor, time)
        noisy = self.schedule.add_noise(data, noise, times)
        wanted = noise if self.options.prediction == "epsilon" else data
        if self.options.prediction == "v_prediction":
            wanted = self.schedule.get_velocity(data, noise, times)
        found = self.denoiser(noisy, time / self.options.times, self.null.dropped(asked, len(data)), places)
        return masked_error(found, wanted, places)

    @torch.no_grad()
    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L or 1, d) -> latents (B, L, D)."""
        steps = how.steps or self.options.steps
        self._enough(steps)
        shape, times, solver = tuple(places.mask.shape), spaced(self.options.times, steps), DpmSolver()
        x = noise("x", shape)
        for i, time in enumerate(times):
            found = self.predicted(x, time / self.options.times, asked, places, how.guidance)
            alpha, after = self.alphas[time], self.alphas[times[i + 1]] if i + 1 < steps else 1.0
            data, rest = parted(found, x, alpha, self.options.prediction)
            if self.options.scheduler == "dpm":
                x = solver.step(x, data, alpha, after)
            elif self.options.scheduler == "ddpm" and after < 1:
                x = ddpm(data, rest, alpha, after, noise(f"step {i}", shape))
            else:
                x = ddim(data, rest, after)
        return self.restored(x, places)

    def check_sampling(self, how: Sampling) -> None:
        """InvalidInput also for more steps than times."""
        super().check_sampling(how)
        self._enough(how.steps or self.options.steps)

    def _enough(self, steps: int) -> None:
        if steps > self.options.times:
            fact = f"{steps:,} steps of sampling, and the diffusion has {self.options.times:,} times"
            raise InvalidInput(fact, f"give at most {self.options.times:,}")
