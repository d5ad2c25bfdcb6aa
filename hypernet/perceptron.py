"""Linear layers with leaky ReLUs, as the parts of a hypernetwork have them inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

SLOPE = 0.01  # of the leaky ReLU, left of 0


def leaky_layers(width: int, hidden: Sequence[int], mode: Literal["fan_in", "fan_out"]) -> nn.Sequential:
    """Linear layers from `width` over the widths `hidden`, each with a leaky ReLU: (..., width) -> (..., hidden[-1]).

    Weights are Kaiming normal, of variance 2 / inputs (`fan_in`) or 2 / outputs (`fan_out`); biases are zero.
    """
    made: list[nn.Module] = []
    for inputs, outputs in zip((width, *hidden), hidden, strict=False):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, SLOPE, mode)
        nn.init.zeros_(layer.bias)
        made += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*made)


def layer_numbers(width: int, hidden: Sequence[int]) -> int:
    """How many numbers `leaky_layers` holds.

    >>> layer_numbers(3, (4, 5)) == (3 + 1) * 4 + (4 + 1) * 5
    True
    """
    return sum((inputs + 1) * outputs for inputs, outputs in zip((width, *hidden), hidden, strict=False))
