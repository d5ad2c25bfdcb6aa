"""What the priors share that learn to take noise away: standard latents, a learned null condition, guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.denoisers.conditioning import Size, latent_shape, real
from paramsmith.hypernet.denoisers.mlp import Mlp
from paramsmith.hypernet.denoisers.null import NullCondition, guided
from paramsmith.hypernet.denoisers.token_dit import TokenDit
from paramsmith.hypernet.denoisers.unet import Unet
from paramsmith.hypernet.denoisers.unet1d import Unet1d
from paramsmith.hypernet.latents import Pairs, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params

Kind: TypeAlias = Literal["token_dit", "mlp", "unet", "unet1d"]

DENOISERS: Final[dict[Kind, Callable[[Size, Site], nn.Module]]] = {
    "token_dit": TokenDit,
    "mlp": Mlp,
    "unet": Unet,
    "unet1d": Unet1d,
}


class Denoising(Params):
    """Options of every prior that takes noise away."""

    denoiser: Kind = Field(
        "token_dit", description="transformer over tokens, perceptron on each, convolutions in 2D or 1D"
    )
    size: Size = Field("tiny", description="of the denoiser")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of conditions that training replaces by the null one")
    standardise: Literal["scalar", "number"] = Field(
        "scalar", description="one mean and deviation for all latents, or for each of the D numbers of a position"
    )


class DenoisingPrior(nn.Module):
    """A denoiser of standardised latents: (z - mean) / std, over all networks and positions of the zoo."""

    mean: Tensor
    std: Tensor

    def __init__(self, options: Denoising, site: Site) -> None:
        super().__init__()
        self.numbers = latent_shape(site)[1]
        kept = self.numbers if options.standardise == "number" else 1
        self.denoiser = DENOISERS[options.denoiser](options.size, site)
        self.null = NullCondition(site.width, options.dropout)
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("std", torch.ones(kept))

    @torch.no_grad()
    def fit(self, pairs: Callable[[], Iterator[Pairs]]) -> None:
        """Mean and deviation, in fp64; where all latents are the same, or there are none, the deviation is 1.

        Failed for latents that are not finite, InvalidInput for a zoo without any.
        """
        sums = torch.zeros(3, self.numbers, dtype=torch.float64)  # of 1, z and z², by number
        for batch in pairs():
            latent, mask = batch.latent.cpu().double(), batch.places.mask.cpu().double()
            powers = (torch.ones_like(latent), latent, latent.square())
            sums += torch.stack([(power * mask).sum((0, 1)) for power in powers])
        if len(self.mean) == 1:
            sums = sums.sum(1, keepdim=True)
        if not sums[0].any():
            raise InvalidInput("there are no latents to learn from", "give a zoo with networks to train on")
        mean, square = sums[1:] / sums[0].clamp_min(1)
        if not bool(torch.isfinite(square).all()):
            raise Failed("a latent of the zoo holds a number that is not finite", "look at the codec's training")
        variance = square - mean.square()
        varies = variance > 1e-12 * square  # more than what rounding leaves of a constant
        self.mean.copy_(mean)
        self.std.copy_(torch.where(varies, variance, 1.0).sqrt())

    def standard(self, latent: Tensor) -> Tensor:
        """(B, L, D) as the denoiser knows them."""
        return (latent - self.mean) / self.std

    def restored(self, standard: Tensor, places: Places) -> Tensor:
        """And back, with 0 for padding."""
        return (standard * self.std + self.mean) * real(places, standard)

    def check_sampling(self, how: Sampling) -> None:
        """InvalidInput for a guidance without a null condition that was trained."""
        self.null.check_guidance(how.guidance)

    def predicted(self, noisy: Tensor, time: float, asked: Tensor, places: Places, guidance: float) -> Tensor:
        """What the denoiser says of (B, L, D) at a time in [0, 1], guided."""
        asked = self.null.beside(asked.expand(len(noisy), -1, -1), guidance)
        several = noisy if guidance == 1 else torch.cat([noisy, noisy])
        times = torch.full((len(several),), time, device=noisy.device)
        return guided(self.denoiser(several, times, asked, places), guidance)


def masked_error(found: Tensor, wanted: Tensor, places: Places) -> Tensor:
    """The mean square of found - wanted, (B, L, D), over all that is not padding."""
    mask = real(places, wanted)
    return ((found.float() - wanted).square() * mask).sum() / (len(wanted) * mask.sum().clamp_min(1))
