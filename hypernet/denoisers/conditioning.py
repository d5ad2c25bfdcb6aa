"""What every denoiser is told besides the latent: the time, what is asked for, and where each position stands."""

from __future__ import annotations

from typing import Literal, TypeAlias

from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site

Size: TypeAlias = Literal["tiny", "small", "paper"]

WAVES = 128  # sines and cosines of a time or a place, together
_TIMES = 1000.0  # what a time of 1 is to them: their longest wave is 10,000 / 2 pi of these


class Conditioning(nn.Module):
    """A code for each position: MLP[waves(time)] + W asked + MLP[features].

    Paper: Scalable Diffusion Models with Transformers, arXiv:2212.09748, where a class is in place of `asked`.
    """

    def __init__(self, width: int, site: Site) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.asked = nn.Linear(site.width, width)
        self.features = FeatureEmbedding(width, site)

    def forward(self, time: Tensor, asked: Tensor, places: Places) -> Tensor:
        """Time (B,) in [0, 1], asked (B, L or 1, d) -> (B, L, width)."""
        told: Tensor = self.time(waves(time * _TIMES))[:, None] + self.asked(asked) + self.features(places.features)
        return told


class FeatureEmbedding(nn.Module):
    """MLP[features], of each position; 0 where a site has no features."""

    def __init__(self, width: int, site: Site) -> None:
        super().__init__()
        self.layers: nn.Sequential | None = None
        if site.features:
            self.layers = nn.Sequential(nn.Linear(site.features, width), nn.SiLU(), nn.Linear(width, width))
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        """(L, F) -> (L, width)."""
        if self.layers is None:
            return features.new_zeros(len(features), self.width)
        found: Tensor = self.layers(features)
        return found


def waves(numbers: Tensor) -> Tensor:
    """(n,) -> (n, 128): cosines and sines of 64 wavelengths, from 2 pi to 20,000 pi."""
    found: Tensor = get_timestep_embedding(numbers, WAVES, flip_sin_to_cos=True, downscale_freq_shift=0)
    return found


def latent_shape(site: Site) -> tuple[int, int]:
    """(L, D). InvalidInput for a site that has no latents."""
    if site.latent is None:
        raise InvalidInput("a prior is made for latents of one shape, and the site has none", "give it a codec")
    return site.latent


def zeroed(layer: nn.Linear | nn.Conv1d) -> nn.Module:
    """The layer, with 0 for all that it starts with."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def real(places: Places, like: Tensor) -> Tensor:
    """(L, D): 1 where a position is more than padding, else 0."""
    return places.mask.to(like.dtype)
