"""diffusers' U-Net on a latent that is taken for an image, the condition its second channel."""

from __future__ import annotations

from math import isqrt
from typing import Final

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site

from .conditioning import Size, latent_shape, real

SIZES: Final[dict[Size, tuple[tuple[int, ...], int, int, int]]] = {
    "tiny": ((8, 16, 32), 1, 16, 4),
    "small": ((64, 128, 128, 256), 2, 64, 32),
    "paper": ((256, 256, 256, 512), 2, 128, 32),
}  # channels by level, residual blocks a level, width of an attention head, groups of the norms
MOST: Final = 1 << 28  # numbers that the map of a condition may hold: 1 GiB
_TIMES = 1000.0  # what a time of 1 is to the U-Net


class Unet(nn.Module):
    """The L D numbers of a latent as a square, padded with 0, and of the same size a linear map of the condition.

    With `asked` of one code (B, 1, d) that map is any from d to L D; where d = L D it begins as the identity, so
    that a code brought near to latents is read as one. With a code a position, position l gets W_l c_l.
    Attention at the two coarsest levels, scale and shift by the time, ResNet blocks up and down. The size is fixed:
    InvalidInput for latents of another L, and for those that are too large.

    Soro et al., "Diffusion-Based Neural Network Weights Generation", arXiv:2402.18153.
    """

    def __init__(self, size: Size, site: Site) -> None:
        super().__init__()
        self.shape = latent_shape(site)
        length, numbers = self.shape
        if length * numbers * max(site.width, 64) > MOST:  # an image takes more than its numbers
            fact = f"the denoiser 'unet' wants latents of few numbers, and these have {length * numbers:,}"
            raise InvalidInput(fact, "use a codec such as image_vae or pca, or the denoiser token_dit")
        channels, blocks, head, groups = SIZES[size]
        coarsest = 1 << len(channels) - 1
        self.side = -(-max(isqrt(length * numbers - 1) + 1, 2 * coarsest) // coarsest) * coarsest
        self.condition = nn.Parameter(_begun(length, numbers, site.width))
        plain = len(channels) - 2
        self.net = UNet2DModel(
            sample_size=self.side,
            in_channels=2,
            out_channels=1,
            block_out_channels=channels,
            layers_per_block=blocks,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * 2,
            up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * plain,
            attention_head_dim=head,
            norm_num_groups=groups,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
        )

    def forward(self, noisy: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        """(B, L, D), time (B,) in [0, 1], asked (B, L or 1, d) -> (B, L, D)."""
        if noisy.shape[1:] != self.shape:
            found, own = ("x".join(map(str, shape)) for shape in (noisy.shape[1:], self.shape))
            fact = f"the denoiser 'unet' is for latents of {own} numbers, and these have {found}"
            raise InvalidInput(fact, "another number of classes needs the denoiser token_dit")
        mask = real(places, noisy)
        told = torch.einsum("bld,lnd->bln", asked.expand(-1, self.shape[0], -1), self.condition)
        image = torch.stack([self._square(noisy * mask), self._square(told)], 1)  # (B, 2, side, side)
        made: Tensor = self.net(image, time * _TIMES).sample
        return made.flatten(1)[:, : noisy[0].numel()].view_as(noisy) * mask

    def _square(self, numbers: Tensor) -> Tensor:
        flat = numbers.flatten(1)
        return pad(flat, (0, self.side**2 - flat.shape[1])).view(-1, self.side, self.side)


def _begun(length: int, numbers: int, width: int) -> Tensor:
    """(L, D, d): the identity, or where the sizes do not allow it, random."""
    if width == length * numbers:
        return torch.eye(width).view(length, numbers, width)
    drawn: Tensor = torch.randn(length, numbers, width) * width**-0.5
    return drawn
