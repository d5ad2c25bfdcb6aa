"""The plain decoder: a linear head for every tensor of one target."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.perceptron import SLOPE, layer_numbers, leaky_layers
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import decoders

from .fixed import Places
from .shapes import affordable

GAIN = sqrt(2 / (1 + SLOPE**2))  # of a leaky ReLU

Sizes = tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...]


class Dense(Params):
    """Options of the decoder `dense`."""

    hidden: Sizes = Field((), description="widths of the layers between the codes and the heads")
    init: Literal["fan_out", "fan_in", "zero"] = Field(
        "fan_out", description="how heads start: by the size of their own tensor (MIP), by their width, or as nothing"
    )
    bias: bool = Field(True, description="whether heads have biases; with a learned base they are not needed")


@decoders("dense", Dense, paper="arXiv:2304.07645")
class DenseDecoder(nn.Module):
    """Every tensor of n numbers is W h + b, with its own W (n, h), h the code after some layers with leaky ReLUs.

    All weights start normal, with variance 2 / fan-out, biases zero. A head's fan-out is the n of its own tensor, not
    that of all heads together, which would start near nothing. `fan_in`: 2 / h. `zero`: all heads zero, so that the
    weights start as the base whatever the code.

    For one target: InvalidInput where there is none, or where the heads would hold more than 10^10 numbers.

    Ortiz et al., 2024, "Magnitude Invariant Parametrizations Improve Hypernetwork Learning", arXiv:2304.07645.
    """

    def __init__(self, options: Dense, site: Site) -> None:
        super().__init__()
        self.places = Places(site, "dense")
        spec = self.places.spec
        wide = (site.width, *options.hidden)[-1]
        numbers = sum(prod(slot.shape) for slot in spec.slots) * (wide + int(options.bias))
        affordable(numbers + layer_numbers(site.width, options.hidden), "the decoder 'dense' for this target")
        self.body = leaky_layers(site.width, options.hidden, "fan_out")
        sizes = [(len(group), prod(spec.slots[group[0]].shape)) for group in spec.groups]
        self.heads = nn.ParameterList(torch.empty(slots, n, wide) for slots, n in sizes)
        self.biases = nn.ParameterList(torch.zeros(slots, n) for slots, n in sizes if options.bias)
        for head in self.heads:
            fan = head.shape[1 if options.init == "fan_out" else 2]
            nn.init.normal_(head, std=0 if options.init == "zero" else GAIN / sqrt(fan))

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a target that it was not built for."""
        self.places.check(spec)

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        group = self.places.group(slots)
        weight = self.places.rows(self.heads[group], slots)  # (S, n, h)
        made = torch.einsum("snh,bsh->bsn", weight, self.body(codes))
        if len(self.biases):
            made = made + self.places.rows(self.biases[group], slots)
        return made.reshape(*codes.shape[:2], *slots[0].shape)
