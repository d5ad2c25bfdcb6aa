"""Convolutional networks of a few stages."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.training.family import Architecture, FamilyOptions, Network, Pool, Range, between
from paramsmith.parts import families

_GROUPS = 8  # of a group norm, or fewer where they do not divide the width


class CNN(FamilyOptions):
    """Options of the family `cnn`."""

    image: int = Field(32, ge=1, description="pixels of a side")
    channels: int = Field(3, ge=1, description="of an image")
    classes: int = Field(10, ge=1, description="outputs")
    stages: Range = Field((2, 3), description="stages, each but the first half as large as the one before")
    blocks: Range = Field((1, 3), description="convolutions of a stage; all but the first are residual")
    widths: Range = Field((16, 64), description="channels of a stage, least and most")
    step: int = Field(8, ge=1, description="between two widths")
    log_uniform: bool = Field(False, description="draw the logarithm of a width evenly, so that few are wide")
    norm: Literal["group", "batch", "none"] = Field("group", description="batch: by the statistics of each batch")
    residual: bool = Field(True, description="add what enters a convolution to what leaves it, within a stage")


@families("cnn", CNN)
def cnn(options: CNN) -> Pool[CNN]:
    """Convolution, norm, ReLU, again and again, with residuals within a stage; a mean over the image; a linear head.

    (n, channels, image, image) -> (n, classes)
    """
    return Pool(options, draw, build)


def draw(options: CNN, rng: np.random.Generator) -> Architecture:
    """Width and convolutions of each stage."""
    return tuple(
        (between(rng, options.widths, options.step, options.log_uniform), between(rng, options.blocks))
        for _ in range(between(rng, options.stages))
    )


def build(options: CNN, stages: Architecture) -> Network:
    """The network of these stages."""
    layers: list[nn.Module] = []
    before = options.channels
    for number, (width, blocks) in enumerate(stages):
        layers.append(Layer(options, before, width, stride=1 if number == 0 else 2))
        layers += [Layer(options, width, width, residual=options.residual) for _ in range(blocks - 1)]
        before = width
    head = nn.Linear(before, options.classes)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return network, (torch.empty(2, options.channels, options.image, options.image),)


class Layer(nn.Module):
    """relu(norm(conv(x))), added to x where it is residual."""

    def __init__(self, options: CNN, inputs: int, width: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=options.norm == "none")
        self.norm = _norm(options.norm, width)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, side, side) -> (n, width, side / stride, side / stride)."""
        made: Tensor = torch.relu(self.norm(self.conv(x)))
        return x + made if self.residual else made


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "batch":  # running statistics are those of no one network where weights are generated
        return nn.BatchNorm2d(width, track_running_stats=False)
    return nn.GroupNorm(math.gcd(width, _GROUPS), width)
