"""A few numbers, such as a loss, an accuracy or a step, as one code by their Fourier features."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.vector import Widths
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Scalars(Params):
    """Options of the encoder `scalars`."""

    name: str = Field("vector", min_length=1, max_length=200, description="the tensor of the condition that is read")
    frequencies: int = Field(128, ge=1, le=65_536, description="frequencies, from 1 upwards")
    octaves: float = Field(20.0, ge=0, le=64, description="the highest frequency, as its logarithm to the base 2")
    hidden: Widths = Field((), description="widths before the code's own")


@encoders("scalars", Scalars, paper="arXiv:2209.12892")
class ScalarsEncoder(nn.Module):
    """Codes (B, 1, width) of `vector` (B, k): each number x as x, sin(w x) and cos(w x), then layers with GELU.

    The frequencies w go from 1 to 2^octaves, each as much above the one before; with 128 of them a number is 257, as
    in G.pt. InvalidInput for a site without such a condition, and for other numbers of numbers or ones not finite.

    Paper: Learning to Learn with Generative Models of Neural Network Checkpoints, arXiv:2209.12892.
    """

    rates: Tensor

    def __init__(self, options: Scalars, site: Site) -> None:
        super().__init__()
        self.name = options.name
        shape = site.condition.get(options.name, ())
        if len(shape) != 1 or not shape[0]:
            fact = f"the encoder 'scalars' wants a condition `{options.name}` of (k,) numbers"
            raise InvalidInput(fact, "say which tensor of the condition it is: name")
        (self.count,) = shape
        rates = 2.0 ** torch.linspace(0, options.octaves, options.frequencies)
        self.register_buffer("rates", rates, persistent=False)
        widths = [self.count * (2 * options.frequencies + 1), *options.hidden, site.width]
        layers = [part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.GELU())][:-1]
        self.body = nn.Sequential(*layers)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width)."""
        found = condition.get(self.name)
        if found is None or found.dim() != 2 or found.shape[1] != self.count:
            told = "nothing" if found is None else "x".join(map(str, found.shape))
            fact = f"a condition is `{self.name}`, (B, {self.count}), and there is {told}"
            raise InvalidInput(fact, "give a row for each")
        if not bool(torch.isfinite(found).all()):
            raise InvalidInput(f"the condition `{self.name}` holds a number that is not finite", "give finite numbers")
        code: Tensor = self.body(self.features(found.float()).flatten(1))
        return code[:, None]

    def features(self, numbers: Tensor) -> Tensor:
        """(B, k) -> (B, k, 2 frequencies + 1)."""
        angles = numbers[..., None] * self.rates
        return torch.cat([angles.sin(), angles.cos(), numbers[..., None]], 2)
