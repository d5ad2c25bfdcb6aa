"""A diffusion transformer over the positions of a latent."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site

from .conditioning import Conditioning, FeatureEmbedding, Size, latent_shape, real, zeroed

SIZES: Final[dict[Size, tuple[int, int, int]]] = {"tiny": (128, 4, 4), "small": (384, 8, 6), "paper": (512, 12, 8)}
CODE: Final = 4  # how much narrower than a token is what its norms are told: faster, and as good, as it is told too


class TokenDit(nn.Module):
    """A transformer whose norms are told, at every position, the time, what is asked for there and where it stands.

    With c the code of a position (`Conditioning`), norms without parameters and (a, b, g, a', b', g') = W silu(c),

        x <- V z + U asked + MLP[features]
        x <- x + g attention((1 + a) norm(x) + b)
        x <- x + g' mlp((1 + a') norm(x) + b')

    All g, and the output, start at 0. There are no positions besides the features, so whatever is done to the order of
    the tokens, with what is asked for and the features in that order too, is done to the output. L is any.
    Width, layers, heads: tiny 128, 4, 4; small 384, 8, 6; paper 512, 12, 8. c is a quarter as wide.

    Paper: Scalable Diffusion Models with Transformers, arXiv:2212.09748, whose condition goes to the norms alone.
    """

    def __init__(self, size: Size, site: Site) -> None:
        super().__init__()
        width, layers, heads = SIZES[size]
        numbers = latent_shape(site)[1]
        self.told = Conditioning(width // CODE, site)
        self.read, self.asked = nn.Linear(numbers, width), nn.Linear(site.width, width)
        self.places = FeatureEmbedding(width, site)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.modulation = zeroed(nn.Linear(width // CODE, 2 * width))
        self.write = zeroed(nn.Linear(width, numbers))

    def forward(self, noisy: Tensor, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        """(B, L, D), time (B,) in [0, 1], asked (B, L or 1, d) -> (B, L, D); neither reads nor writes padding."""
        mask = real(places, noisy)
        told = silu(self.told(time, asked, places))  # (B, L, width / 4)
        tokens: Tensor = self.read(noisy * mask) + self.asked(asked) + self.places(places.features)
        for layer in self.layers:
            tokens = layer(tokens, told)
        found: Tensor = self.write(_modulated(tokens, *self.modulation(told).chunk(2, -1)))
        return found * mask


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zeroed(nn.Linear(width // CODE, 6 * width))
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, told: Tensor) -> Tensor:
        scale, shift, gate, *mlp = self.modulation(told).chunk(6, -1)  # (B, L, width) each
        read = self.read(_modulated(tokens, scale, shift)).unflatten(-1, (3, self.heads, -1))
        query, key, value = read.permute(2, 0, 3, 1, 4)  # (B, heads, L, width / heads)
        heard = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = torch.addcmul(tokens, gate, self.write(heard))
        return torch.addcmul(tokens, mlp[2], self.mlp(_modulated(tokens, mlp[0], mlp[1])))


def _modulated(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normed = layer_norm(tokens, tokens.shape[-1:])
    return torch.addcmul(normed + shift, normed, scale)  # (1 + scale) normed + shift, in two operations
