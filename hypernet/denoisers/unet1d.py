"""A convolution net over all numbers of a latent in one row, which never gets shorter."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site

from .conditioning import Conditioning, Size, real, zeroed

SIZES: Final[dict[Size, tuple[int, ...]]] = {
    "tiny": (16, 32, 64),
    "small": (32, 64, 128, 256),
    "paper": (64, 128, 256, 512),
}  # channels by level
_KERNEL, _GROUPS = 3, 8


class Unet1d(nn.Module):
    """Convolutions of kernel 3 over (B, 1, L D), channels up and down again, each level read by its mirror image.

    A level is h = silu(norm(conv x)) + W c, then x' = h + silu(norm(conv h)), with c the code of the number's position
    (`Conditioning`): every sample has its own time. Nothing is clamped. L is any. Channels: tiny 16, 32, 64; small 32,
    64, 128, 256; paper 64, 128, 256, 512.

    Wang et al., "Neural Network Parameter Diffusion", arXiv:2402.13144, whose net adds the time to its input alone.
    """

    def __init__(self, size: Size, site: Site) -> None:
        super().__init__()
        channels = SIZES[size]
        width = channels[-1]
        self.told = Conditioning(width, site)
        self.down = nn.ModuleList(_Level(wide, out, width) for wide, out in pairwise((1, *channels)))
        wider = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.up = nn.ModuleList(_Level(wide + out, out, width) for wide, out in wider)
        self.write = zeroed(nn.Conv1d(channels[0], 1, 1))

    def forward(self, noisy: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        """(B, L, D), time (B,) in [0, 1], asked (B, L or 1, d) -> (B, L, D)."""
        mask = real(places, noisy)
        told = silu(self.told(time, asked, places))  # (B, L, width)
        x, read = (noisy * mask).flatten(1)[:, None], []  # (B, 1, L D)
        for level in self.down:
            x = level(x, told)
            read.append(x)
        read.pop()
        for level in self.up:
            x = level(torch.cat([x, read.pop()], 1), told)
        found: Tensor = self.write(x)
        return found.view_as(noisy) * mask


class _Level(nn.Module):
    def __init__(self, wide: int, out: int, told: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(wide, out, _KERNEL, padding=_KERNEL // 2)
        self.second = nn.Conv1d(out, out, _KERNEL, padding=_KERNEL // 2)
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, out) for _ in range(2))
        self.told = nn.Linear(told, out)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, wide, L D), (B, L, told) -> (B, out, L D)."""
        here = self.told(told).transpose(1, 2)[..., None]  # (B, out, L, 1)
        x = silu(self.norms[0](self.first(x)))
        x = (x.view(*here.shape[:3], -1) + here).flatten(2)
        return x + silu(self.norms[1](self.second(x)))
