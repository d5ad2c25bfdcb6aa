"""The autoencoder of D2NWG: a network as one vector, as an image, as a smaller image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.tokens.layout import Layout
from paramsmith.params import Params
from paramsmith.parts import codecs

from .positions import affordable, check_same, layout_of, sinusoids


@dataclass(frozen=True)
class _Size:
    side: int  # of the image, one channel
    channels: tuple[int, ...]  # each but the first after a halving of the side
    blocks: int
    groups: int  # of the norms
    slope: float = 0.01  # of the LeakyReLU below 0; 1: none, as where there are fewer pixels than numbers


SIZES = {
    "tiny": _Size(16, (8, 16), 1, 4, slope=1.0),
    "small": _Size(64, (64, 128, 128), 1, 32),
    "paper": _Size(64, (128, 128, 256), 2, 32),
}
_DEPTH = 4  # channels of a latent


class ImageVae(Params):
    """Options of the codec `image_vae`."""

    size: Literal["tiny", "small", "paper"] = Field("paper", description="latents of 4x8x8, 4x16x16 and 4x16x16")
    kl: float = Field(1e-6, ge=0, le=1000, description="weight of the divergence of latents from N(0, 1)")
    mse: float = Field(1000.0, ge=0, le=1e6, description="weight of the mean square error, beside the absolute one")


@codecs("image_vae", ImageVae, paper="arXiv:2402.18153")
class ImageVaeCodec(nn.Module):
    """x (N T) -> LeakyReLU(A x + a) as an image 1 x R x R -> AutoencoderKL -> B y + b, for a fixed number of classes.

    (L, D) = (h w, 4): the pixels of the latent, row by row. It is the mean of the posterior. `paper` has the values of
    the small zoos: R = 64, channels 128, 128, 256, two blocks each, latents of 4 x 16 x 16. Images have neighbours
    that weights do not; `token_vae` makes no such assumption. `tiny` has no LeakyReLU. InvalidInput for another
    number of classes.

    Soro et al., 2025, "Diffusion-Based Neural Network Weights Generation", arXiv:2402.18153.
    """

    autoencoder: Any

    def __init__(self, options: ImageVae, site: Site) -> None:
        super().__init__()
        layout, size = layout_of(site, "image_vae"), SIZES[options.size]
        self.options, self.side, self.slope = options, size.side, size.slope
        self.shape = (len(layout), layout.width)
        numbers, pixels = len(layout) * layout.width, size.side**2
        affordable(2 * numbers * pixels, "image_vae")
        self.enter, self.leave = nn.Linear(numbers, pixels), nn.Linear(pixels, numbers)
        self.autoencoder = _autoencoder(size)
        self.pixels = size.side >> (len(size.channels) - 1)  # a side of the latent

    def places(self, layout: Layout) -> Places:
        """One a pixel: sinusoids of its row and of its column."""
        check_same(layout, self.shape, "image_vae")
        width, pixel = layout.places.features.shape[1], torch.arange(self.pixels**2)
        rows = sinusoids(pixel // self.pixels, width // 2)
        columns = sinusoids(pixel % self.pixels, width - width // 2)
        none = torch.full_like(pixel, -1)
        return Places(torch.cat([rows, columns], 1), none, none, torch.ones(len(pixel), _DEPTH, dtype=torch.bool))

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) -> (B, h w, 4)."""
        moments: Tensor = self._moments(tokens, layout)[0]
        return moments.flatten(2).transpose(1, 2)

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, h w, 4) -> (B, N, T)."""
        check_same(layout, self.shape, "image_vae")
        return self._decoded(latent.transpose(1, 2).reshape(-1, _DEPTH, self.pixels, self.pixels), layout)

    def loss(self, tokens: Tensor, layout: Layout) -> Tensor:
        """sum |x - x'| + kl · KL + mse · mean (x - x')², sums over a network, z drawn by torch's global generator.

        KL = ½ sum(μ² + σ² - 1 - ln σ²). Numbers that are padding do not count. All is the mean over the batch.
        """
        mean, spread = self._moments(tokens, layout)  # (B, 4, h, w); spread: ln σ²
        drawn = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        mask = layout.places.mask.to(tokens.device)
        wrong = torch.where(mask, self._decoded(drawn, layout) - tokens, 0.0).flatten(1)
        apart = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum((1, 2, 3))
        squares = wrong.square().sum(1) / mask.sum()
        return (wrong.abs().sum(1) + self.options.kl * apart + self.options.mse * squares).mean()

    def _moments(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        check_same(layout, self.shape, "image_vae")
        known = torch.where(layout.places.mask.to(tokens.device), tokens, 0.0)
        pixels = nn.functional.leaky_relu(self.enter(known.flatten(1)), self.slope)
        image = pixels.view(-1, 1, self.side, self.side)
        posterior = self.autoencoder.encode(image, return_dict=False)[0]
        return posterior.mean, posterior.logvar

    def _decoded(self, latent: Tensor, layout: Layout) -> Tensor:
        image = self.autoencoder.decode(latent, return_dict=False)[0]
        mask = layout.places.mask.to(latent.device)
        return torch.where(mask, self.leave(image.flatten(1)).view(-1, *self.shape), 0.0)


def _autoencoder(size: _Size) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(size.channels)
    settings: dict[str, Any] = {  # whose tuples its signature takes to have one entry
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": size.channels,
    }
    made: nn.Module = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        layers_per_block=size.blocks,
        latent_channels=_DEPTH,
        norm_num_groups=size.groups,
        sample_size=size.side,
        **settings,
    )
    return made
