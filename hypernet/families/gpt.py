"""Language models like GPT-2, drawn so that deep ones are narrow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.training.family import Architecture, FamilyOptions, Network, Pool, Range, between
from paramsmith.parts import families

from .blocks import Block


class GPT(FamilyOptions):
    """Options of the family `gpt`; the defaults are GPTs-1K."""

    words: int = Field(50257, ge=1, description="of the vocabulary")
    context: int = Field(1024, ge=1, description="most tokens at once")
    layers: Range = Field((3, 9), description="least and most")
    dims: Range | None = Field(None, description="width, least and most; None: by depth, 72 to 256")
    step: int = Field(8, ge=1, description="between two widths")
    log_uniform: bool = Field(False, description="draw the logarithm of a width evenly, so that few are wide")
    heads: int = Field(8, ge=1, description="attention heads; widths that they do not divide are left out")
    most_parameters: int | None = Field(30_000_000, ge=1, description="larger architectures are left out")


@dataclass(frozen=True)
class Config:
    """How GPT-2 draws its weights."""

    initializer_range: float = 0.02


@families("gpt", GPT, paper="arXiv:2405.16287")
def gpt(options: GPT) -> Pool[GPT]:
    """Embeddings of tokens and positions, causal blocks, a norm, a head that is not tied.

    (n, tokens) -> (n, tokens, words)
    """
    return Pool(options, draw, build)


def draw(options: GPT, rng: np.random.Generator) -> Architecture:
    """Layers and width."""
    layers = between(rng, options.layers)
    width = between(rng, options.dims or dims_of(layers), options.step, options.log_uniform)
    return layers, max(options.heads, width // options.heads * options.heads)


def dims_of(layers: int) -> tuple[int, int]:
    """The widths of GPTs-1K by depth.

    >>> dims_of(9), dims_of(5), dims_of(3)
    ((72, 176), (128, 176), (176, 256))
    """
    return (72, 176) if layers > 5 else (128, 176) if layers > 3 else (176, 256)


def build(options: GPT, architecture: Architecture) -> Network:
    """The network of these layers and this width."""
    tokens = torch.zeros(2, min(16, options.context), dtype=torch.long)
    return LanguageModel(options, *architecture), (tokens,)


class LanguageModel(nn.Module):
    """A small pre-norm causal transformer, its head untied."""

    def __init__(self, options: GPT, layers: int, width: int) -> None:
        super().__init__()
        self.config = Config()
        self.wte, self.wpe = nn.Embedding(options.words, width), nn.Embedding(options.context, width)
        self.blocks = nn.ModuleList(Block(width, options.heads, causal=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, options.words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of each token's successor."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[-1]]  # (n, tokens, width)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.lm_head(self.norm(x))
        return made
