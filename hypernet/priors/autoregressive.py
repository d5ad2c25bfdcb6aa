"""Autoregression: the codes of a network one after the other, each given those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.denoisers.causal import CausalTransformer
from paramsmith.hypernet.denoisers.conditioning import WAVES, FeatureEmbedding, Size, latent_shape, waves
from paramsmith.hypernet.denoisers.null import NullCondition, guided
from paramsmith.hypernet.latents import Noise, Pairs, Places, Sampling
from paramsmith.hypernet.protocols import Site
from paramsmith.params import Params
from paramsmith.parts import priors

from .arrangement import affordable

_STD = 0.02  # of embeddings


class Autoregressive(Params):
    """Options of the prior `autoregressive`."""

    codes: int = Field(256, ge=2, le=65_536, description="entries of a codebook, as the codec has it")
    size: Size = Field("tiny", description="of the transformer")
    context: int = Field(1024, ge=2, le=65_536, description="positions that are read at once; more are drawn in blocks")
    tail: int | None = Field(None, ge=1, description="positions of a block that the next one reads; a quarter of them")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of conditions that training replaces by the null one")
    temperature: float = Field(1.0, ge=0, le=100, description="of sampling; 0 takes the likeliest code")
    top_k: int | None = Field(None, ge=1, description="how many of the likeliest codes may be drawn; all if unset")


class Block(NamedTuple):
    """Positions that are read from `first`, and drawn from `start`, to `end`."""

    first: int
    start: int
    end: int


@priors("autoregressive", Autoregressive, paper="arXiv:2504.02012")
class AutoregressivePrior(nn.Module):
    """A causal transformer over the codes of a network: log p = sum_i sum_l log p(c_il | c_1 .. c_i-1, c_i1 .. c_il-1).

    A latent (B, L, levels) holds codes as whole numbers, as those of the codec `rvq` do. A position is one token: the
    embeddings of the codes before it, what is asked for there, its features and its number; before all there is what
    is asked for on the whole. Its levels are told by small heads, each of which knows the levels before its own. The
    loss is the cross-entropy of a code.

    More than `context` positions are drawn block by block: a block reads the last `tail` positions of the one before.
    Training takes a block at random, as often as it has codes. A code is drawn by the number `codes` of its place,
    taken through the normal distribution function. InvalidInput for latents that are no codes, and for a number of
    steps.

    Soro et al., "Instruction-Guided Autoregressive Neural Network Parameter Generation", arXiv:2504.02012.
    """

    def __init__(self, options: Autoregressive, site: Site) -> None:
        super().__init__()
        self.options = options
        self.tail = options.context // 4 or 1 if options.tail is None else options.tail
        if self.tail >= options.context:
            fact = f"a tail of {self.tail:,} positions leaves nothing of a context of {options.context:,} to draw"
            raise InvalidInput(fact, "give a shorter tail")
        self.levels = latent_shape(site)[1]
        self.net = CausalTransformer(options.size)
        width = self.net.width
        affordable(3 * self.levels * options.codes * width, "autoregressive", "take fewer codes, or fewer levels")
        self.null = NullCondition(site.width, options.dropout)
        self.asked, self.prefix = nn.Linear(site.width, width), nn.Linear(site.width, width)
        self.features, self.number = FeatureEmbedding(width, site), nn.Linear(WAVES, width)
        self.start = nn.Parameter(torch.randn(width) * _STD)
        self.before = nn.Parameter(torch.randn(self.levels, options.codes, width) * _STD)
        self.above = nn.Parameter(torch.randn(self.levels - 1, options.codes, width) * _STD)
        self.heads = nn.ModuleList(_head(width, options.codes) for _ in range(self.levels))

    def fit(self, pairs: Callable[[], Iterator[Pairs]]) -> None:
        """Look whether all latents are codes."""
        for batch in pairs():
            latent = batch.latent
            if not bool(((latent == latent.round()) & (latent >= 0) & (latent < self.options.codes)).all()):
                fact = f"the prior 'autoregressive' draws codes below {self.options.codes:,}, and a latent holds others"
                raise InvalidInput(fact, "the codec rvq gives codes: latent codes, and as many codes as the prior has")

    def loss(self, latent: Tensor, asked: Tensor, places: Places) -> Tensor:
        """Codes (B, L, levels), asked (B, L or 1, d) -> the mean cross-entropy of a code that is not padding."""
        codes = latent.long()
        asked = self.null.dropped(asked, len(codes))
        drawn = int(torch.randint(len(places), ()))
        block = next(block for block in blocks(len(places), self.options.context, self.tail) if drawn < block.end)
        new = slice(block.start, block.end)
        logits = self.logits(codes, asked, places, block).flatten(0, 2)
        wrong = cross_entropy(logits.float(), codes[:, new].flatten(), reduction="none").view(codes[:, new].shape)
        mask = places.mask[new].to(wrong.dtype)
        return (wrong * mask).sum() / (len(codes) * mask.sum()).clamp_min(1)

    def logits(self, codes: Tensor, asked: Tensor, places: Places, block: Block) -> Tensor:
        """Of the codes (B, L, levels) that a block draws: (B, end - start, levels, K), each given those before it."""
        tokens = torch.cat([self._prefix(asked), self._tokens(codes, asked, places, block.first, block.end)], 1)
        heard = self.net(tokens)[:, 1 + block.start - block.first :]
        here = codes[:, block.start : block.end]
        return torch.stack([self._level(heard, here, level) for level in range(self.levels)], 2)

    @torch.no_grad()
    def sample(self, asked: Tensor, places: Places, noise: Noise, how: Sampling) -> Tensor:
        """(B, L or 1, d) -> codes (B, L, levels), as numbers."""
        self._check_steps(how)
        length = len(places)
        chances = torch.special.ndtr(noise("codes", (length, self.levels)).double())  # (B, L, levels), below 1 in fp64
        codes = torch.zeros(chances.shape, dtype=torch.int64, device=chances.device)
        asked = self.null.beside(asked.expand(len(codes), -1, -1), how.guidance)
        for block in blocks(length, self.options.context, self.tail):
            cache = self.net.cache(len(asked), 1 + block.end - block.first)
            read = self._tokens(codes, asked, places, block.first, block.start + 1)
            tokens = torch.cat([self._prefix(asked), read], 1)
            for i in range(block.start, block.end):
                heard = self.net(tokens, cache)[:, -1:]  # (B, 1, width)
                self._draw(codes[:, i : i + 1], heard, chances[:, i], how.guidance)
                codes[:, i] *= places.mask[i]
                if i + 1 < block.end:
                    tokens = self._tokens(codes, asked, places, i + 1, i + 2)
        return codes.float()

    def check_sampling(self, how: Sampling) -> None:
        """InvalidInput for a number of steps, and for a guidance without a null condition that was trained."""
        self._check_steps(how)
        self.null.check_guidance(how.guidance)

    def _check_steps(self, how: Sampling) -> None:
        if how.steps is not None:
            raise InvalidInput("the prior 'autoregressive' takes a step a position", "leave the number of steps out")

    def _draw(self, here: Tensor, heard: Tensor, chances: Tensor, guidance: float) -> None:
        """Fill in the codes (B, 1, levels) of a position, level by level."""
        for level in range(self.levels):
            logits = self._level(heard, here, level)[:, 0]
            here[:, 0, level] = self._chosen(guided(logits, guidance), chances[:, level])

    def _chosen(self, logits: Tensor, chances: Tensor) -> Tensor:
        """Of each row of (B, K) the first code up to which the probabilities add up to more than its chance: (B,)."""
        if self.options.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self.options.temperature
        if self.options.top_k is not None and self.options.top_k < logits.shape[-1]:
            least = logits.topk(self.options.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        sums = logits.double().softmax(-1).cumsum(-1)
        return (sums <= chances[:, None] * sums[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)

    def _prefix(self, asked: Tensor) -> Tensor:
        """(B, L or 1, d) -> (B, 1, width)."""
        found: Tensor = self.prefix(asked.mean(1, keepdim=True))
        return found

    def _tokens(self, codes: Tensor, asked: Tensor, places: Places, first: int, end: int) -> Tensor:
        """What is read at the positions from `first` to `end`: (A, end - first, width), for codes of B and asked of A.

        A is B, or twice as many under guidance: each asks for the same codes twice.
        """
        numbers = torch.arange(first, end, dtype=torch.float32, device=codes.device)
        told = self.features(places.features[first:end]) + self.number(waves(numbers))  # (n, width)
        told = told + self.asked(asked if asked.shape[1] == 1 else asked[:, first:end])
        before = _embedded(self.before, codes[:, max(first - 1, 0) : end - 1])
        if first == 0:
            before = torch.cat([self.start.to(before.dtype).expand(len(codes), 1, -1), before], 1)
        tokens: Tensor = told + _repeated(before, len(asked))
        return tokens

    def _level(self, heard: Tensor, here: Tensor, level: int) -> Tensor:
        """Logits (A, n, K) of a level, by what was heard (A, n, width) and the codes (B, n, levels) above it."""
        if level:
            heard = heard + _repeated(_embedded(self.above[:level], here[..., :level]), len(heard))
        found: Tensor = self.heads[level](heard)
        return found


def blocks(length: int, context: int, tail: int) -> Iterator[Block]:
    """How L positions are drawn.

    >>> [tuple(block) for block in blocks(10, 4, 1)]
    [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    """
    first, start = 0, 0
    while start < length:
        end = min(first + context, length)
        yield Block(first, start, end)
        first, start = end - tail, end


def _embedded(tables: Tensor, codes: Tensor) -> Tensor:
    """The sum of a row of each table, (levels, K, width) by (B, n, levels) -> (B, n, width)."""
    shift = torch.arange(len(tables), device=codes.device) * tables.shape[1]
    return embedding(codes + shift, tables.flatten(0, 1)).sum(2)


def _repeated(held: Tensor, count: int) -> Tensor:
    """(B, ...) -> (count, ...), all of B again and again."""
    return held if len(held) == count else torch.cat([held] * (count // len(held)))


def _head(width: int, codes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, codes))
