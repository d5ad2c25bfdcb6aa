"""One small head for all of a target: it is asked for a piece at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from paramsmith.hypernet.perceptron import layer_numbers, leaky_layers
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import decoders

from .dense import Sizes
from .fixed import Places
from .shapes import affordable


class Chunked(Params):
    """Options of the decoder `chunked`."""

    chunk: int = Field(1024, ge=1, le=1 << 24, description="numbers in a piece")
    embedding: int = Field(32, ge=1, le=1 << 16, description="width of the learned code of a piece")
    hidden: Sizes = Field((128,), description="widths of the layers before the head")
    init: Literal["fan_in", "zero"] = Field("fan_in", description="how the head starts: with unit variance, or as zero")


@decoders("chunked", Chunked, paper="arXiv:1906.00695")
class ChunkedDecoder(nn.Module):
    """Every tensor is cut into pieces of `chunk` numbers: piece c is head(layers(code, e_c)), with a learned code e_c.

    Pieces do not run from one tensor into the next, so that tensors can be made one by one; of the last piece of each
    only what is needed is kept. Codes e_c start normal; raw tensors start with about unit variance where codes have it.

    For one target: InvalidInput where there is none, or where this would hold more than 10^10 numbers.

    von Oswald et al., 2020, "Continual learning with hypernetworks", arXiv:1906.00695.
    """

    def __init__(self, options: Chunked, site: Site) -> None:
        super().__init__()
        self.places = Places(site, "chunked")
        spec, chunk = self.places.spec, options.chunk
        pieces = [(len(group), -(-prod(spec.slots[group[0]].shape) // chunk)) for group in spec.groups]
        width = site.width + options.embedding
        wide = (width, *options.hidden)[-1]
        numbers = sum(slots * count for slots, count in pieces) * options.embedding + (wide + 1) * chunk
        affordable(numbers + layer_numbers(width, options.hidden), "the decoder 'chunked' for this target")
        self.pieces = nn.ParameterList(torch.randn(slots, count, options.embedding) for slots, count in pieces)
        self.body = leaky_layers(width, options.hidden, "fan_in")
        self.head = nn.Linear(wide, chunk)
        nn.init.normal_(self.head.weight, std=0 if options.init == "zero" else 1 / sqrt(wide))
        nn.init.zeros_(self.head.bias)

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a target that it was not built for."""
        self.places.check(spec)

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        pieces = self.places.rows(self.pieces[self.places.group(slots)], slots)  # (S, pieces, e)
        shape = (*codes.shape[:2], pieces.shape[1])
        asked = torch.cat([codes.unsqueeze(2).expand(*shape, -1), pieces.expand(*shape, -1)], dim=-1)
        count = prod(slots[0].shape)
        kept = min(count, self.head.out_features)
        made = linear(self.body(asked), self.head.weight[:kept], self.head.bias[:kept])  # (B, S, pieces, kept)
        return made.flatten(2)[..., :count].reshape(*codes.shape[:2], *slots[0].shape)
