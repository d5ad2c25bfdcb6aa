"""The autoencoder of D2NWG layer by layer: each token of a network is encoded by itself, all of them by the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.layout import Layout
from paramsmith.parts import codecs

from .image_vae import ImageVae, ImageVaeCodec
from .positions import layout_of

_AT_ONCE = 64  # tokens encoded or decoded at once: images take far more memory than the numbers they are of


class ChunkVae(ImageVae):
    """Options of the codec `chunk_vae`: those of `image_vae`, and how many tokens a step is of."""

    batch: int = Field(64, ge=1, le=65_536, description="tokens a step: drawn from all of its networks")


@codecs("chunk_vae", ChunkVae, paper="arXiv:2402.18153")
class ChunkVaeCodec(ImageVaeCodec):
    """`image_vae` of one token: x (T,) -> an image -> its latent, z = the pixels one after the other, and back.

    (L, D) = (N, 4 h w), for any number of classes; a latent stands where its token does. With the layout `tensor` and
    a width of T this is the paper's layer-wise form: each tensor is flattened and padded to whole chunks of T numbers,
    and each chunk is a sample. It is for networks too large to be one vector: LoRA adapters, layers of an LLM.
    InvalidInput for tokens of another T.

    Soro et al., 2025, "Diffusion-Based Neural Network Weights Generation", arXiv:2402.18153.
    """

    def __init__(self, options: ChunkVae, site: Site) -> None:
        width = layout_of(site, "chunk_vae").width
        alone = Layout(TargetSpec((Slot("chunk", (width,), "F32", "bias", width),)), "flat", width, ("chunk",))
        super().__init__(options, replace(site, layout=alone))
        self.alone, self.batch = alone, options.batch
        self.numbers = 4 * self.pixels**2

    def places(self, layout: Layout) -> Places:
        """Those of the tokens."""
        held = layout.places
        there = held.mask.any(1, keepdim=True).expand(-1, self.numbers)
        return Places(held.features, held.classes, held.slots, there)

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) -> (B, N, 4 h w)."""
        mask = self._mask(tokens, layout)
        rows = torch.where(mask, tokens, 0.0).reshape(-1, 1, layout.width)
        latent = self._each(rows, super().encode)  # (B N, h w, 4)
        return torch.where(mask.any(1, keepdim=True), latent.view(*tokens.shape[:2], -1), 0.0)

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, N, 4 h w) -> (B, N, T)."""
        mask = self._mask(latent, layout)
        made = self._each(latent.reshape(-1, self.numbers // 4, 4), super().decode)  # (B N, 1, T)
        return torch.where(mask, made.view(-1, *mask.shape), 0.0)

    def loss(self, tokens: Tensor, layout: Layout) -> Tensor:
        """sum |x - x'| + kl · KL + mse · mean (x - x')², sums over a token; the mean over `batch` tokens of them all.

        Which tokens, and z, are drawn by torch's global generator. Numbers that are padding do not count.
        """
        real = self._mask(tokens, layout).expand_as(tokens).flatten(0, 1)  # (B N, T)
        there = real.any(1).nonzero()[:, 0]
        chosen = there[torch.randperm(len(there))[: self.batch].to(there.device)]
        mask = real[chosen]
        known = torch.where(mask, tokens.flatten(0, 1)[chosen], 0.0)[:, None]  # (n, 1, T)
        mean, spread = self._moments(known, self.alone)  # (n, 4, h, w); spread: ln σ²
        drawn = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        wrong = torch.where(mask, (self._decoded(drawn, self.alone) - known)[:, 0], 0.0)
        apart = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum((1, 2, 3))
        squares = wrong.square().sum(1) / mask.sum(1)
        return (wrong.abs().sum(1) + self.options.kl * apart + self.options.mse * squares).mean()

    def _each(self, rows: Tensor, change: Callable[[Tensor, Layout], Tensor]) -> Tensor:
        starts = range(0, len(rows), _AT_ONCE)
        return torch.cat([change(rows[start : start + _AT_ONCE], self.alone) for start in starts])

    def _mask(self, held: Tensor, layout: Layout) -> Tensor:
        """Which numbers are there (N, T), where `held` lies."""
        if layout.width != self.alone.width:
            raise InvalidInput(f"tokens have {layout.width:,} numbers, not {self.alone.width:,}", "keep the layout")
        return layout.places.mask.to(held.device)
