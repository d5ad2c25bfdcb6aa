"""Raw tensors brought to the size that suits their role: (B, S, *shape) -> the difference from the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.parametrizations.schemes import spread
from paramsmith.hypernet.parametrizations.slot_tensors import one_target
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Role, Slot
from paramsmith.params import Params
from paramsmith.parts import scales

TINY = 1e-5  # added to a variance: tensors of zeros stay zeros, and have a gradient


@scales("none")
class NoScale(nn.Module):
    """Raw tensors as they are."""

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, raw: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, *shape) -> (B, S, *shape)."""
        return raw


class FanIn(Params):
    """Options of the scale `fan_in`."""

    beta: float = Field(2.0, gt=0, allow_inf_nan=False, description="variance of a weight times its fan-in")


@scales("fan_in", FanIn, paper="arXiv:2303.04143")
class FanInScale(nn.Module):
    """The rule of GHN-3: layers r sqrt(beta / fan_in), biases tanh(r/5), norms 2 sigmoid(r/2), tables r.

    beta counts 1 for kernels that are depthwise, or wider than high. A bias of a norm is a bias; the scale of a norm
    comes as its difference from 1, 2 sigmoid(r/2) - 1 = tanh(r/4).

    Paper: arXiv:2303.04143.
    """

    def __init__(self, options: FanIn, site: Site) -> None:
        super().__init__()
        self.beta = options.beta

    def forward(self, raw: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, *shape) -> (B, S, *shape)."""
        squashed = _squashed(raw, slots[0])
        if squashed is not None:
            return squashed
        if slots[0].role in ("embedding", "position"):
            return raw
        return raw * _each(raw, [self.multiplier(slot) for slot in slots])

    def multiplier(self, slot: Slot) -> float:
        """What the raw matrix or kernel of a slot is multiplied by.

        >>> FanInScale(FanIn(), Site(0)).multiplier(Slot("fc.weight", (10, 50), "F32", "matrix", fan_in=50))
        0.2
        """
        shape = slot.shape
        narrow = len(shape) > 2 and (shape[1] == 1 or (len(shape) > 3 and shape[-2] < shape[-1]))
        return math.sqrt((1.0 if narrow else self.beta) / max(1, slot.fan_in))


@scales("std", paper="arXiv:2405.16287")
class StdScale(nn.Module):
    """Each tensor brought to the standard deviation of its own initialisation: r std / sqrt(var(r) + 1e-5).

    The deviation is the slot's where it says one, else torch's for the role. Biases and norms: as the scale `fan_in`.
    A tensor of one number has no deviation, and is r std.

    Paper: LoGAH's language models, arXiv:2405.16287.
    """

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, raw: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, *shape) -> (B, S, *shape)."""
        squashed = _squashed(raw, slots[0])
        if squashed is not None:
            return squashed
        wanted = raw * _each(raw, [spread(slot) for slot in slots])
        if math.prod(slots[0].shape) < 2:
            return wanted
        variance = raw.flatten(2).var(2, correction=0)  # (B, S)
        return wanted * torch.rsqrt(variance + TINY).view(*variance.shape, *[1] * len(slots[0].shape))


class LearnedFactor(Params):
    """Options of the scale `learned`."""

    by: Literal["role", "slot"] = Field("role", description="what has a number of its own; slot: for one target only")
    start: float = Field(1.0, allow_inf_nan=False, description="the number at first")


@scales("learned", LearnedFactor)
class LearnedScale(nn.Module):
    """s r with a learned number s for each role, or for each slot of the one target."""

    def __init__(self, options: LearnedFactor, site: Site) -> None:
        super().__init__()
        self.by = options.by
        named: tuple[str, ...] = get_args(Role)
        if self.by == "slot":
            named = tuple(slot.name for slot in one_target(site, "scale 'learned' by slot").slots)
        self._place = {name: place for place, name in enumerate(named)}
        self.factor = nn.Parameter(torch.full((len(named),), options.start))

    def forward(self, raw: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, *shape) -> (B, S, *shape)."""
        chosen = self.factor[[self._place[slot.name if self.by == "slot" else slot.role] for slot in slots]]
        return raw * chosen.view(-1, *[1] * len(slots[0].shape))


def _squashed(raw: Tensor, slot: Slot) -> Tensor | None:
    """What becomes of biases and norms; None for the rest."""
    if slot.role == "norm_scale":
        return torch.tanh(raw / 4)
    if slot.role in ("bias", "norm_shift"):
        return torch.tanh(raw / 5)
    return None


def _each(raw: Tensor, numbers: Sequence[float]) -> Tensor:
    """One number a slot, (S, 1, ...)."""
    return torch.tensor(numbers, dtype=raw.dtype, device=raw.device).view(-1, *[1] * (raw.dim() - 2))
