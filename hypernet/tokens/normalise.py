"""Numbers of tensors to numbers of a size near 1, and back:  t = (x - mean) / scale,  x = t scale + mean.

            mean            scale
none        0               1
pow2        0               root mean square of a tensor, as a power of two
meanstd64   of a tensor     its standard deviation, as a power of two
center      of an entry     of a tensor, the standard deviation from these means, as a power of two
coord       of an entry     standard deviation of an entry
token       as pow2; then each token's own mean and log of its standard deviation, which it ends with

All over the networks that it was fitted to. An entry of a row of a class is one entry for all classes. Powers of two
give every bit back, in fp32 where no mean is subtracted, else in fp64 (numbers of more than 2^-28 of the mean, and 0):
a mean that is subtracted in fp32 does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from paramsmith.hypernet.moments import Moments
from paramsmith.hypernet.targets.target import Slot

Kind: TypeAlias = Literal["none", "pow2", "meanstd64", "coord", "center", "token"]
Per: TypeAlias = Literal["tensor", "entry"]
OWN = 2  # numbers at the end of a token of the kind `token`
_MEANS: dict[Kind, Per] = {"meanstd64": "tensor", "center": "entry", "coord": "entry"}
_SCALES: dict[Kind, Per] = {
    "pow2": "tensor",
    "token": "tensor",
    "meanstd64": "tensor",
    "center": "tensor",
    "coord": "entry",
}
_CONSTANT = 1e-7  # of the mean: a standard deviation below is rounding
_LEAST = 1e-3  # of that of its tensor: what an entry counts as varying by at least
_MOST_LOG = 30.0  # that a token's own may be


class Normaliser(nn.Module):
    """Statistics in two buffers, `mean` and `scale`, fp64: one number a tensor, or one an entry, tensor by tensor."""

    mean: Tensor
    scale: Tensor

    def __init__(self, kind: Kind, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.kind: Kind = kind
        self._slots = {slot.name: slot for slot in slots}
        self._places: dict[str, tuple[int, int]] = {}  # number, first entry
        entries = 0
        for number, slot in enumerate(slots):
            self._places[slot.name] = number, entries
            entries += prod(entry_shape(slot))
        sizes: dict[Per, int] = {"tensor": len(slots), "entry": entries}
        if kind in _MEANS:
            self.register_buffer("mean", torch.zeros(sizes[_MEANS[kind]], dtype=torch.float64))
        if kind in _SCALES:
            self.register_buffer("scale", torch.ones(sizes[_SCALES[kind]], dtype=torch.float64))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Moved with the module, and never rounded with it: half precision would not give numbers back."""
        held = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in held.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def fit(self, networks: Iterable[Mapping[str, Tensor]]) -> None:
        """From tensors (B, *shape) by name, batch by batch."""
        found: dict[str, Moments] = {}
        for tensors in networks:
            for name, slot in self._slots.items():
                told = Moments.of(tensors[name], self._axes(slot), keep=True)
                found[name] = found[name].with_more(told) if name in found else told
        for name, moments in found.items():
            self._keep(name, moments)

    @property
    def subtracts(self) -> bool:
        """Whether there is more to it than a factor a tensor."""
        return self.kind in _MEANS

    def factors(self) -> dict[str, float] | None:
        """What each tensor is multiplied by, where that is all."""
        if self.subtracts:
            return None
        scales = self.scale.tolist() if self.kind in _SCALES else [1.0] * len(self._slots)
        return {name: 1.0 / scales[number] for name, (number, _) in self._places.items()}

    def forward(self, tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        """(B, *shape) -> (B, *shape) of a size near 1."""
        mean, scale = self._of(name)
        return ((tensor.double() - mean) / scale).to(dtype)

    def undo(self, tensor: Tensor, name: str) -> Tensor:
        """(B, *shape) -> (B, *shape), fp64."""
        mean, scale = self._of(name)
        return tensor.double() * scale + mean

    def _axes(self, slot: Slot) -> list[int]:
        """What statistics are taken over: networks and classes, or all."""
        if "entry" not in (_MEANS.get(self.kind), _SCALES.get(self.kind)):
            return list(range(len(slot.shape) + 1))
        return [0] if slot.class_axis is None else [0, slot.class_axis + 1]

    def _keep(self, name: str, moments: Moments) -> None:
        mean, std = moments.mean, (moments.squares / moments.count).sqrt()
        if self.kind in _MEANS:
            self._put("mean", _MEANS[self.kind], name, mean)
            std = torch.where(std > _CONSTANT * mean.abs(), std, 0.0)
        else:
            std = (std.square() + mean.square()).sqrt()
        typical = std.square().mean().sqrt()
        if self.kind == "coord":
            std = std.clamp_min(_LEAST * typical)
            self._put("scale", "entry", name, torch.where(std > 0, std, 1.0))
        elif self.kind in _SCALES:
            self._put("scale", "tensor", name, torch.tensor(power_of_two(float(typical)), dtype=torch.float64))

    def _put(self, buffer: str, per: Per, name: str, values: Tensor) -> None:
        number, first = self._places[name]
        start, many = (number, 1) if per == "tensor" else (first, values.numel())
        getattr(self, buffer)[start : start + many] = values.flatten()

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self._held("mean", _MEANS.get(self.kind), name), self._held("scale", _SCALES.get(self.kind), name)

    def _held(self, buffer: str, per: Per | None, name: str) -> Tensor:
        if per is None:
            return torch.tensor(0.0 if buffer == "mean" else 1.0, dtype=torch.float64)
        number, first = self._places[name]
        held: Tensor = getattr(self, buffer)
        if per == "tensor":
            return held[number]
        shape = entry_shape(self._slots[name])
        return held[first : first + prod(shape)].view(shape)


def entry_shape(slot: Slot) -> tuple[int, ...]:
    """The shape of what is kept an entry: that of the tensor, with one class."""
    return tuple(1 if axis == slot.class_axis else size for axis, size in enumerate(slot.shape))


def power_of_two(size: float) -> float:
    """The nearest, by ratio; 1 for nothing, and never so small or large that fp32 could not bear its inverse.

    >>> power_of_two(0.3), power_of_two(3.0), power_of_two(0.0)
    (0.25, 4.0, 1.0)
    """
    if not size > 0:
        return 1.0
    part, exponent = math.frexp(size)  # size = part 2^exponent, 1/2 <= part < 1
    return math.ldexp(1.0, min(max(exponent - (part < 0.5**0.5), -100), 100))


def with_own(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, N, U + 2) with room at the end -> the same less each token's mean, over its std; both at the end."""
    numbers, there = tokens[..., :-OWN].double(), mask[:, :-OWN]
    count = there.sum(1).clamp_min(1)  # (N)
    mean = (numbers * there).sum(2) / count  # (B, N)
    std = (((numbers - mean[..., None]) * there).square().sum(2) / count).sqrt()
    std = torch.where(std > _CONSTANT * mean.abs(), std, 1.0)
    made = (numbers - mean[..., None]) / std[..., None] * there
    return torch.cat([made, mean[..., None], std.log()[..., None]], 2).to(tokens.dtype)


def without_own(tokens: Tensor) -> Tensor:
    """The inverse: (B, N, U + 2), of which the last two are the mean and the log of the std -> (B, N, U + 2)."""
    mean, std = tokens[..., -2:-1].double(), tokens[..., -1:].double().clamp(-_MOST_LOG, _MOST_LOG).exp()
    return (tokens.double() * std + mean).to(tokens.dtype)
