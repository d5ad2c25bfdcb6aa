"""Perceptrons of several layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from paramsmith.hypernet.training.family import Architecture, FamilyOptions, Network, Pool, Range, between
from paramsmith.parts import families

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(FamilyOptions):
    """Options of the family `mlp`."""

    inputs: int = Field(64, ge=1, description="numbers of an example, whatever its shape")
    classes: int = Field(10, ge=1, description="outputs")
    layers: Range = Field((1, 4), description="hidden layers, least and most")
    widths: Range = Field((16, 64), description="of a hidden layer, least and most")
    step: int = Field(1, ge=1, description="between two widths")
    log_uniform: bool = Field(False, description="draw the logarithm of a width evenly, so that few are wide")
    equal: bool = Field(False, description="give all hidden layers of a network one width")
    activation: Literal["relu", "gelu", "tanh"] = Field("relu", description="after every hidden layer")


@families("mlp", MLP)
def mlp(options: MLP) -> Pool[MLP]:
    """Linear layers with an activation between them: (n, ...) -> (n, classes)."""
    return Pool(options, draw, build)


def draw(options: MLP, rng: np.random.Generator) -> Architecture:
    """The widths of the hidden layers."""
    depth = between(rng, options.layers)
    widths = [between(rng, options.widths, options.step, options.log_uniform) for _ in range(depth)]
    return tuple(widths[:1] * depth if options.equal else widths)


def build(options: MLP, widths: Architecture) -> Network:
    """The network of these widths."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([options.inputs, *widths]):
        layers += [nn.Linear(before, after), _ACTIVATIONS[options.activation]()]
    layers.append(nn.Linear(widths[-1], options.classes))
    return nn.Sequential(*layers), (torch.empty(2, options.inputs),)
