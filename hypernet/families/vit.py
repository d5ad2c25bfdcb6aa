"""Vision transformers, drawn so that deep ones are narrow."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from paramsmith.hypernet.training.family import Architecture, FamilyOptions, Network, Pool, Range, between
from paramsmith.parts import families

from .blocks import Block


class ViT(FamilyOptions):
    """Options of the family `vit`; the defaults are ViTs-1K. For images of 8 x 8: image=8, dims=(16, 32), step=8."""

    image: int = Field(32, ge=1, description="pixels of a side")
    patch: int = Field(2, ge=1, description="pixels of a side of a patch")
    channels: int = Field(3, ge=1, description="of an image")
    classes: int = Field(10, ge=1, description="outputs")
    layers: Range = Field((3, 9), description="least and most")
    dims: Range | None = Field(None, description="width, least and most; None: by depth, 128 to 512")
    step: int = Field(32, ge=1, description="between two widths")
    log_uniform: bool = Field(False, description="draw the logarithm of a width evenly, so that few are wide")
    most_parameters: int | None = Field(10_000_000, ge=1, description="larger architectures are left out")

    @model_validator(mode="after")
    def _cut_evenly(self) -> ViT:
        if self.image % self.patch:
            raise ValueError(f"patches of {self.patch} do not divide an image of {self.image}")
        return self


@families("vit", ViT, paper="arXiv:2405.16287")
def vit(options: ViT) -> Pool[ViT]:
    """A convolution cuts patches, positions are added, blocks, a norm, the mean over the patches, a linear head.

    (n, channels, image, image) -> (n, classes)
    """
    return Pool(options, draw, build)


def draw(options: ViT, rng: np.random.Generator) -> Architecture:
    """Layers, width and heads."""
    layers = between(rng, options.layers)
    width = between(rng, options.dims or dims_of(layers), options.step, options.log_uniform)
    choices = heads_of(width)
    return layers, width, choices[int(rng.integers(len(choices)))]


def dims_of(layers: int) -> tuple[int, int]:
    """The widths of ViTs-1K by depth.

    >>> dims_of(9), dims_of(5), dims_of(3)
    ((128, 256), (256, 384), (384, 512))
    """
    return (128, 256) if layers > 5 else (256, 384) if layers > 3 else (384, 512)


def heads_of(width: int) -> tuple[int, ...]:
    """How many heads a width may have.

    >>> heads_of(384), heads_of(256), heads_of(18), heads_of(7)
    ((3, 6, 12), (4, 8), (3, 6), (1,))
    """
    threes = tuple(heads for heads in (3, 6, 12) if width % heads == 0)
    return threes or tuple(heads for heads in (4, 8) if width % heads == 0) or (1,)


def build(options: ViT, architecture: Architecture) -> Network:
    """The network of these layers, this width and these heads."""
    return VisionTransformer(options, *architecture), (torch.empty(2, options.channels, options.image, options.image),)


class VisionTransformer(nn.Module):
    """A small pre-norm vision transformer without class token."""

    def __init__(self, options: ViT, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(options.channels, width, options.patch, options.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, (options.image // options.patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, options.classes)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.patch_embed(x).flatten(-2).transpose(-2, -1) + self.pos_embed  # (n, patches, width)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.head(self.norm(x).mean(-2))
        return made
