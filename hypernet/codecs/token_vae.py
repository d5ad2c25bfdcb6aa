"""A variational autoencoder of tokens: each becomes a shorter one, which knows of the others."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.tokens.layout import Layout
from paramsmith.params import Params
from paramsmith.parts import codecs

from .positions import affordable, layout_of


class TokenVae(Params):
    """Options of the codec `token_vae`."""

    latent: int = Field(32, ge=1, le=4096, description="numbers a token is encoded in")
    layers: int = Field(4, ge=1, le=64, description="layers of the encoder, and of the decoder")
    width: int = Field(256, ge=1, le=8192, description="width of the layers, a multiple of the heads")
    heads: int = Field(4, ge=1, le=128, description="heads of attention")
    kl: float = Field(1e-6, ge=0, le=1000, description="weight of the divergence of latents from N(0, 1)")
    l1: float = Field(1.0, ge=0, le=1000, description="weight of the mean absolute error, beside the mean square")


@codecs("token_vae", TokenVae)
class TokenVaeCodec(nn.Module):
    """q(z | tokens) and p(tokens | z) by transformers over tokens, each with the features of its place.

    (L, D) = (N, latent), for any number of classes. Tokens that are padding are seen by none; numbers that are
    padding enter as 0 and come out as 0. A latent is the mean of q.
    """

    def __init__(self, options: TokenVae, site: Site) -> None:
        super().__init__()
        layout = layout_of(site, "token_vae")
        self.options, self.width = options, layout.width
        if options.width % options.heads:
            fact = f"the codec 'token_vae' has a width of {options.width:,} for {options.heads} heads"
            raise InvalidInput(fact, "make the width a multiple of the heads")
        features = layout.places.features.shape[1]
        ends = layout.width + 2 * features + 3 * options.latent + layout.width
        affordable(24 * options.layers * options.width**2 + options.width * ends, "token_vae")
        self.encoder = _Transformer(layout.width, features, options, 2 * options.latent)
        self.decoder = _Transformer(options.latent, features, options, layout.width)

    def places(self, layout: Layout) -> Places:
        """Those of the tokens."""
        held = layout.places
        there = held.mask.any(1, keepdim=True).expand(-1, self.options.latent)
        return Places(held.features, held.classes, held.slots, there)

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) -> (B, N, latent), the means."""
        return self._posterior(tokens, layout)[0]

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, N, latent) -> (B, N, T)."""
        held = layout.places.to(latent.device)
        made = self.decoder(latent, held.features, _seen(layout, latent.device))
        return torch.where(held.mask, made, 0.0)

    def loss(self, tokens: Tensor, layout: Layout) -> Tensor:
        """mean (x - x')² + l1 · mean |x - x'| + kl · KL, z drawn from q by torch's global generator.

        The means are over the numbers that are there; KL = ½ sum(μ² + σ² - 1 - ln σ²) of a token, the mean over tokens.
        """
        mean, spread = self._posterior(tokens, layout)  # spread: ln σ²
        drawn = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        mask = layout.places.mask.to(tokens.device)
        wrong = torch.where(mask, self.decode(drawn, layout) - tokens, 0.0)
        count = (mask.sum() * len(tokens)).clamp_min(1)
        apart = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(2)  # (B, N), 0 for padding
        divergence = apart.sum() / (mask.any(1).sum() * len(tokens)).clamp_min(1)
        chosen = self.options
        return (wrong.square().sum() + chosen.l1 * wrong.abs().sum()) / count + chosen.kl * divergence

    def _posterior(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Mean and ln σ² (B, N, latent); 0 for padding."""
        if layout.width != self.width:
            raise InvalidInput(f"tokens have {layout.width:,} numbers, not {self.width:,}", "keep the layout")
        held = layout.places.to(tokens.device)
        known = torch.where(held.mask, tokens, 0.0)
        found = self.encoder(known, held.features, _seen(layout, tokens.device))
        found = torch.where(held.mask.any(1, keepdim=True), found, 0.0)
        mean, spread = found.chunk(2, 2)
        return mean, spread.clamp(-30, 20)


class _Transformer(nn.Module):
    """x (B, N, n) and features (N, F) -> (B, N, m): layers with the norms before, one after the last."""

    def __init__(self, numbers: int, features: int, options: TokenVae, out: int) -> None:
        super().__init__()
        width = options.width
        self.enter, self.features = nn.Linear(numbers, width), nn.Linear(features, width)
        self.layers = nn.ModuleList(_Layer(width, options.heads) for _ in range(options.layers))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, out)

    def forward(self, x: Tensor, features: Tensor, seen: Tensor | None) -> Tensor:
        held = self.enter(x) + self.features(features)
        for layer in self.layers:
            held = layer(held, seen)
        made: Tensor = self.leave(self.norm(held))
        return made


class _Layer(nn.Module):
    """x + attention(norm(x)), then the same with a perceptron of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.found = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        parts = self.asked(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, h, N, ·)
        query, key, value = parts.unbind(0)
        x = x + self.found(scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2))
        made: Tensor = x + self.narrow(gelu(self.wide(self.between(x))))
        return made


def _seen(layout: Layout, device: torch.device) -> Tensor | None:
    """Which tokens attention may look at, (1, 1, 1, N); None where it is all of them."""
    there = layout.places.mask.any(1)
    return None if bool(there.all()) else there.to(device)[None, None, None]
