"""A residual perceptron on each position of a latent by itself: for networks that are one vector."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site

from .conditioning import Conditioning, Size, latent_shape, real, zeroed

SIZES: Final[dict[Size, tuple[int, int]]] = {"tiny": (384, 3), "small": (1024, 4), "paper": (2048, 6)}


class Mlp(nn.Module):
    """Blocks x <- x + g W' gelu(W ((1 + a) norm(x) + b)), with (a, b, g) = M silu(c), c the code of a position.

    It begins with x = V z + U asked; all g, and the output, start at 0. Positions do not see each other: a transformer
    over a single token has nothing else to do, and is slower. Width, blocks: tiny 384, 3; small 1024, 4; paper 2048, 6.

    Paper: FiLM, arXiv:1709.07871; residual blocks gated from 0: arXiv:2212.09748.
    """

    def __init__(self, size: Size, site: Site) -> None:
        super().__init__()
        width, blocks = SIZES[size]
        numbers = latent_shape(site)[1]
        self.told = Conditioning(width, site)
        self.read, self.asked = nn.Linear(numbers, width), nn.Linear(site.width, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.write = zeroed(nn.Linear(width, numbers))

    def forward(self, noisy: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        """(B, L, D), time (B,) in [0, 1], asked (B, L or 1, d) -> (B, L, D); neither reads nor writes padding."""
        mask = real(places, noisy)
        told = silu(self.told(time, asked, places))  # (B, L, width)
        x: Tensor = self.read(noisy * mask) + self.asked(asked)
        for block in self.blocks:
            x = block(x, told)
        found: Tensor = self.write(layer_norm(x, x.shape[-1:]))
        return found * mask


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 3 * width))
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(told).chunk(3, -1)  # (B, L, width) each
        normed = layer_norm(x, x.shape[-1:])
        return torch.addcmul(x, gate, self.layers(torch.addcmul(normed + shift, normed, scale)))
