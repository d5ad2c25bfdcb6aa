"""GHN-3's decoder: a small kernel, repeated to the size of the target."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, relu

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import normal
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import decoders

from .shapes import affordable, kernel_shape, second

EXTRA = 2  # tokens beside a square of positions: that of the class, that of distillation
EXTRA_STD = 0.02


class ConvTile(Params):
    """Options of the decoder `conv_tile`."""

    kernel: int = Field(16, ge=1, le=256, description="the largest side s of a kernel; larger ones are interpolated")
    classes: int = Field(1000, ge=1, le=1 << 20, description="classes of every target: the head is for this number")


@decoders("conv_tile", ConvTile, paper="arXiv:2303.04143")
class ConvTileDecoder(nn.Module):
    """A kernel (d, d, kh, kw) from a code of width d, repeated along its channels until it fills the tensor.

    linear d -> 4d s², a ReLU, viewed as (4d, s, s) and cut to the middle (kh, kw); at each place an MLP 4d -> 8d ->
    d²; cropped or repeated to (out, in). Kernels of a side above s are interpolated. Only what is kept is computed.

    Heads: ReLU and a linear map d -> C over the output channels, so that C, the number of classes, is fixed.
    Vectors: MLP d -> 2d -> 2d, viewed as (2, d), the first row a norm's scale, the second a bias, repeated; the bias
    of the head: ReLU and a linear map d -> C of that row. Positions (1, T, D) of a square of T tokens are a kernel
    (1, D, √T, √T); of one or two tokens more, these get fixed numbers of standard deviation 0.02, keyed by the name
    of the tensor. Other positions are matrices.

    The last layers of kernels and vectors, and that of heads, start a fifth as large as usual, with zero biases.
    InvalidInput for a head of another number of classes, and for kernels of more than two sides.

    Knyazev et al., 2023, "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?",
    arXiv:2303.04143.
    """

    def __init__(self, options: ConvTile, site: Site) -> None:
        super().__init__()
        d, self.side, self.classes = site.width, options.kernel, options.classes
        numbers = 4 * d * d * self.side**2 + 32 * d * d + 8 * d**3 + 2 * d * self.classes
        affordable(numbers, f"the decoder 'conv_tile' of width {d:,}")
        self.width = d
        self.fc = nn.Linear(d, 4 * d * self.side**2)
        self.conv = nn.Sequential(nn.Linear(4 * d, 8 * d), nn.ReLU(), nn.Linear(8 * d, d * d))
        self.head = nn.Linear(d, self.classes)
        self.vector = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, 2 * d))
        self.head_bias = nn.Linear(d, self.classes)
        with torch.no_grad():
            for last in (_last(self.conv), _last(self.vector), self.head):
                last.weight.div_(5)
                last.bias.zero_()

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a head of another number of classes, or a kernel of more than two sides."""
        for slot in spec.slots:
            name = printable(slot.name)
            count = self.classes if slot.class_axis is None else slot.shape[slot.class_axis]
            if count != self.classes:
                fact = f"{name} is for {count:,} classes; this generator is for {self.classes:,}"
                raise InvalidInput(fact, f"train one with classes {count}, or logah, whose heads are for any number")
            if slot.role == "kernel" and len(slot.shape) > 4:
                fact = f"{name} is a kernel of {len(slot.shape) - 2} sides; this generator makes at most 2"
                raise InvalidInput(fact, "a generator of logah makes it")

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        slot = slots[0]
        shape = kernel_shape(slot)
        if shape is None:
            return self._vectors(codes, slot).reshape(*codes.shape[:2], *slot.shape)
        if slot.class_axis is not None:
            return self._heads(codes, slot)
        if slot.role == "position" and (side := square(slot.shape)):
            return self._positions(codes, slots, side)
        made = self._kernels(codes, shape)  # (B, S, out, in, kh, kw)
        return tiled(tiled(made, 2, shape[0]), 3, shape[1]).reshape(*codes.shape[:2], *slot.shape)

    def _kernels(self, codes: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """(B, S, d) -> (B, S, out, in, kh, kw), with at most d channels out and in."""
        d, s, sides = self.width, self.side, shape[2:]
        out, into, high, wide = (min(size, most) for size, most in zip(shape, (d, d, s, s), strict=True))
        middle = (slice(None), *(slice(s // 2 - size // 2, s // 2 - size // 2 + size) for size in (high, wide)))
        first = self.fc.weight.view(4 * d, s, s, d)[middle].reshape(-1, d), self.fc.bias.view(4 * d, s, s)[middle]
        places = relu(linear(codes, first[0], first[1].flatten()))  # (B, S, 4d * kh * kw)
        places = places.reshape(*codes.shape[:2], 4 * d, high * wide).transpose(-1, -2)  # (B, S, kh * kw, 4d)
        last = _last(self.conv)
        weight = last.weight.view(d, d, 8 * d)[:out, :into].reshape(-1, 8 * d)
        places = linear(self.conv[:-1](places), weight, last.bias.view(d, d)[:out, :into].flatten())
        made = places.transpose(-1, -2).reshape(*codes.shape[:2], out, into, high, wide)
        if sides == (high, wide):
            return made
        return interpolate(made.flatten(0, 2), sides, mode="bilinear").reshape(*made.shape[:4], *sides)

    def _heads(self, codes: Tensor, slot: Slot) -> Tensor:
        """The axis of the classes first, all others as columns, which the kernel in its middle gives."""
        axis = slot.class_axis or 0
        others = [size for place, size in enumerate(slot.shape) if place != axis]
        made = self._kernels(codes, (self.width, prod(others), 1, 1))[..., 0, 0]  # (B, S, d, in)
        made = linear(relu(made.transpose(-1, -2)), self.head.weight, self.head.bias)  # (B, S, in, C)
        made = tiled(made, 2, prod(others)).transpose(-1, -2)  # (B, S, C, columns)
        return made.reshape(*codes.shape[:2], self.classes, *others).movedim(2, 2 + axis)

    def _positions(self, codes: Tensor, slots: Sequence[Slot], side: int) -> Tensor:
        """(B, S, 1, T, D): the extra tokens first."""
        tokens, wide = slots[0].shape[1:]
        made = tiled(self._kernels(codes, (1, wide, side, side)), 3, wide)  # (B, S, 1, D, side, side)
        made = made.flatten(-2).transpose(-1, -2)  # (B, S, 1, side², D)
        extra = tokens - side * side
        if not extra:
            return made
        fixed = torch.stack([normal(0, slot.name, (extra, wide), EXTRA_STD) for slot in slots])  # (S, extra, D)
        return torch.cat([fixed.to(made).unsqueeze(1).expand(codes.shape[0], -1, 1, -1, -1), made], dim=-2)

    def _vectors(self, codes: Tensor, slot: Slot) -> Tensor:
        """(B, S, numbers of the tensor)."""
        pair = self.vector(codes).reshape(*codes.shape[:2], 2, self.width)
        made = pair[:, :, int(second(slot))]  # (B, S, d)
        if slot.class_axis is not None:
            return linear(relu(made), self.head_bias.weight, self.head_bias.bias)
        return tiled(made, 2, prod(slot.shape))


def tiled(values: Tensor, axis: int, length: int) -> Tensor:
    """Repeated along an axis, and cut, to a length.

    >>> tiled(torch.tensor([1, 2, 3]), 0, 7)
    tensor([1, 2, 3, 1, 2, 3, 1])
    """
    times = -(-length // values.shape[axis])
    return (torch.cat([values] * times, dim=axis) if times > 1 else values).narrow(axis, 0, length)


def square(shape: tuple[int, ...]) -> int:
    """The side of the square of tokens that positions (1, T, D) are for, or 0 where they are for no square.

    >>> square((1, 197, 768)), square((1, 64, 32)), square((1, 77, 512)), square((1024, 768))
    (14, 8, 0, 0)
    """
    if len(shape) != 3 or shape[0] != 1:
        return 0
    side = isqrt(shape[1])
    return side if shape[1] - side * side <= EXTRA else 0


def _last(layers: nn.Sequential) -> nn.Linear:
    last = layers[-1]
    if not isinstance(last, nn.Linear):
        raise TypeError("the last layer is no linear one")
    return last
