"""Residual vector quantisation: chunks of tokens as codes, which an autoregressive prior draws one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Places
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.tokens.layout import Layout
from paramsmith.params import Params, Share
from paramsmith.parts import codecs

from .codebooks import looked_up, quantised, residual_k_means, uniform_sample
from .learned_codes import Averages, Perceptron
from .positions import affordable, layout_of, sinusoids


class Rvq(Params):
    """Options of the codec `rvq`."""

    chunk: int = Field(8, ge=1, le=4096, description="numbers of a token that codes stand for together")
    levels: int = Field(2, ge=1, le=16, description="codes a chunk, each of what those before it leave")
    codes: int = Field(256, ge=2, le=65_536, description="entries of a codebook; each level has its own")
    latent: Literal["codes", "vectors"] = Field(
        "codes", description="what a prior draws: the codes as numbers, or the vectors they stand for"
    )
    iterations: int = Field(10, ge=1, le=1000, description="steps of k-means")
    seed: int = Field(0, ge=0, lt=2**63, description="of the vectors that k-means begins with")
    learned: bool = Field(False, description="whether an encoder and a decoder are trained; else k-means is all")
    width: int = Field(128, ge=1, le=8192, description="learned: width of the layers of encoder and decoder")
    vector: int = Field(16, ge=1, le=4096, description="learned: numbers of a code vector")
    decay: float = Field(0.95, ge=0, lt=1, description="learned: share of a code that a step keeps")
    commitment: float = Field(0.25, ge=0, le=1000, description="learned: weight of the encoder's distance to its codes")
    dead: Share = Field(0.02, description="learned: share of the mean use below which a code is drawn anew")
    temperature: float = Field(
        0.0, ge=0, le=1e6, description="learned: of Gumbel noise on the squared distances in training; 0 is none"
    )


class RvqCodec(nn.Module):
    """What both kinds have: chunks, codebooks, codes and places."""

    books: Tensor

    def __init__(self, options: Rvq, site: Site) -> None:
        super().__init__()
        layout = layout_of(site, "rvq")
        self.options = options
        self.width = layout.width
        self.per_token = -(-layout.width // options.chunk)
        numbers = options.vector if options.learned else options.chunk
        affordable(options.levels * options.codes * numbers * (2 if options.learned else 1), "rvq")
        self.register_buffer("books", torch.zeros(options.levels, options.codes, numbers))

    def places(self, layout: Layout) -> Places:
        """Of each chunk, those of its token, its number within the token added to the features.

        `mask` is (L, levels) for codes, (L, numbers of a vector) for vectors.
        """
        held = layout.places.to(self.books.device)
        features = held.features.repeat_interleave(self.per_token, 0)  # (L, F)
        if self.per_token > 1:
            number = torch.arange(self.per_token, device=features.device).repeat(len(held))
            features = (features + sinusoids(number, features.shape[1])) * 0.5**0.5
        classes, slots = (x.repeat_interleave(self.per_token) for x in (held.classes, held.slots))
        there = self._chunks(held.mask[None])[0]  # (L, chunk)
        if self.options.latent == "codes" or self.options.learned:
            depth = self.options.levels if self.options.latent == "codes" else self.options.vector
            there = there.any(1, keepdim=True).expand(-1, depth)
        return Places(features, classes, slots, there)

    def codes_of(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Codes (B, L, levels), int64, of (B, N, T); 0 where a chunk is padding."""
        vectors = self._vectors(tokens, layout)
        found, _ = quantised(vectors.flatten(0, 1), self.books)
        codes = found.view(*vectors.shape[:2], -1)
        return torch.where(self.places(layout).mask.any(1, keepdim=True), codes, 0)

    def tokens_of(self, codes: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) of codes (B, L, levels)."""
        return self._tokens(looked_up(codes, self.books), layout)

    def encode(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, N, T) -> (B, L, levels), the codes as fp32 numbers; or (B, L, d), the sums of their vectors."""
        codes = self.codes_of(tokens, layout)
        if self.options.latent == "codes":
            return codes.float()
        return torch.where(self.places(layout).mask, looked_up(codes, self.books), 0.0)

    def decode(self, latent: Tensor, layout: Layout) -> Tensor:
        """(B, L, levels or d) -> (B, N, T): of the nearest codes there are, or of the vectors as they are."""
        if self.options.latent == "vectors":
            return self._tokens(latent, layout)
        whole = latent.nan_to_num().round().clamp(0, self.options.codes - 1).long()
        return self.tokens_of(whole, layout)

    def _vectors(self, tokens: Tensor, layout: Layout) -> Tensor:
        """What is quantised, (B, L, d)."""
        return self._chunks(self._there(tokens, layout))

    def _tokens(self, vectors: Tensor, layout: Layout) -> Tensor:
        """(B, L, d) -> (B, N, T)."""
        return self._there(self._joined(vectors), layout)

    def _there(self, tokens: Tensor, layout: Layout) -> Tensor:
        if layout.width != self.width:
            raise InvalidInput(f"tokens have {layout.width:,} numbers, not {self.width:,}", "keep the layout")
        return torch.where(layout.places.mask.to(tokens.device), tokens, 0.0)

    def _chunks(self, tokens: Tensor) -> Tensor:
        """(B, N, T) -> (B, L, chunk), the last of a token padded."""
        missing = self.per_token * self.options.chunk - self.width
        shape = (len(tokens), tokens.shape[1] * self.per_token, self.options.chunk)
        return pad(tokens, (0, missing)).reshape(shape)

    def _joined(self, chunks: Tensor) -> Tensor:
        """(B, L, chunk) -> (B, N, T)."""
        joined = chunks.reshape(len(chunks), -1, self.per_token * self.options.chunk)
        return joined[..., : self.width]


class ComputedRvq(RvqCodec):
    """Codes of the chunks themselves, found by k-means."""

    def fit(self, batches: Callable[[], Iterator[tuple[Tensor, Layout]]]) -> None:
        """Codebooks from (B, N, T) of a zoo: k-means on a uniform sample of its chunks, level by level."""

        def chunks() -> Iterator[Tensor]:
            for tokens, layout in batches():
                there = self.places(layout).mask.any(1).to(tokens.device)
                yield self._vectors(tokens, layout)[:, there].flatten(0, 1)

        chosen = self.options
        sample = uniform_sample(chunks(), chosen.codes, chosen.seed)
        if not len(sample):
            raise InvalidInput("there is not one chunk of weights to find codes of", "train networks for the zoo")
        self.books.copy_(residual_k_means(sample, chosen.levels, chosen.codes, chosen.iterations))


class LearnedRvq(RvqCodec):
    """Codes of what an encoder makes of a chunk, from which a decoder makes it again; both know where it stands."""

    def __init__(self, options: Rvq, site: Site) -> None:
        super().__init__(options, site)
        features = layout_of(site, "rvq").places.features.shape[1]
        self.encoder = Perceptron(options.chunk, features, options.width, options.vector)
        self.decoder = Perceptron(options.vector, features, options.width, options.chunk)
        self.averages = Averages(self.books, options.decay, options.dead)

    def loss(self, tokens: Tensor, layout: Layout) -> Tensor:
        """mean (x - x')² over the numbers that are there + commitment · mean (z - e_1 - ... - e_l)² over all levels l.

        Gradients pass straight through the codes. In training the codes follow the encoder: see `Averages`.
        """
        places = self.places(layout)
        there = places.mask.any(1)  # (L,)
        mask = self._chunks(layout.places.mask.to(tokens.device)[None])[0, there]  # (L', chunk)
        chunks = self._chunks(self._there(tokens, layout))[:, there]
        encoded = self.encoder(chunks, places.features[there]).float()  # (B, L', d)
        away, residuals = self._coded(encoded.flatten(0, 1))
        passed = encoded - residuals[-1].view_as(encoded)  # the sum of the codes, with the gradient of z
        made = self.decoder(passed, places.features[there])
        wrong = torch.where(mask, made - chunks, 0.0).square()
        mean = wrong.sum() / (mask.sum() * len(tokens)).clamp_min(1)
        found: Tensor = mean + self.options.commitment * away.square().mean()
        return found

    def _coded(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Of z (n, d): z less the sum of the first 1, 2, ... codes, with the gradient of z, and without."""
        held = vectors.detach()
        with torch.no_grad(), torch.autocast(held.device.type, enabled=False):
            if self.training:
                self.averages.begin(self.books, held)
            temperature = self.options.temperature if self.training else 0.0
            codes, residuals = quantised(held, self.books, temperature)  # (levels + 1, n, d)
            if self.training:
                self.averages.follow(self.books, residuals[:-1], codes)
        return vectors - (held - residuals[1:]), residuals

    def _vectors(self, tokens: Tensor, layout: Layout) -> Tensor:
        found: Tensor = self.encoder(super()._vectors(tokens, layout), self.places(layout).features)
        return found

    def _tokens(self, vectors: Tensor, layout: Layout) -> Tensor:
        return super()._tokens(self.decoder(vectors, self.places(layout).features), layout)


@codecs("rvq", Rvq, paper="arXiv:2504.02012")
def rvq(options: Rvq, site: Site) -> RvqCodec:
    """x ≈ e_1 + ... + e_levels: chunks of `chunk` numbers of a token by the nearest codes, level after level.

    Each level quantises what those before it leave, so that two levels of K codes tell K² chunks apart. For any number
    of classes; (L, D) = (N ceil(T / chunk), levels), the codes as numbers, or `latent: vectors`. Fitted by k-means on
    normalised tokens (deviations from the mean of a zoo cost fewer codes than weights: that is the normaliser's). Or
    `learned`: encoder and decoder with straight-through gradients, codes as moving averages, those out of use drawn
    anew, and optional Gumbel noise.

    Papers: IGPG, arXiv:2504.02012; residual codes: SoundStream, arXiv:2107.03312; averages: VQ-VAE, arXiv:1711.00937.
    """
    return LearnedRvq(options, site) if options.learned else ComputedRvq(options, site)
