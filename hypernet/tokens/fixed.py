"""Tensors of fixed shapes that a tokenizer keeps: templates of what is not generated, bases of differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor, nn


class Fixed(nn.Module):
    """Tensors by name, in one buffer `values`, fp32; none where there are no tensors."""

    values: Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self._first: dict[str, int] = {}
        numbers = 0
        for name, shape in shapes.items():
            self._first[name] = numbers
            numbers += prod(shape)
        if numbers:
            self.register_buffer("values", torch.zeros(numbers))

    def get(self, name: str) -> Tensor:
        """The tensor of a name, as a view."""
        first, shape = self._first[name], self.shapes[name]
        return self.values[first : first + prod(shape)].view(shape)

    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """The mean, taken in fp64, of tensors (B, *shape) by name, batch by batch."""
        sums: dict[str, Tensor] = {}
        count = 0
        for tensors in batches:
            for name in self.shapes:
                total = tensors[name].detach().double().sum(0)
                sums[name] = sums[name] + total if name in sums else total
            count += max((len(tensors[name]) for name in self.shapes), default=0)
        for name, total in sums.items():
            self.get(name).copy_(total / count)
