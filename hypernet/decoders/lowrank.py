"""LoGAH's decoder: every tensor as a product of two factors, so that its width costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import decoders

from .shapes import affordable, kernel_shape, second


class LowRank(Params):
    """Options of the decoder `lowrank`."""

    rank: int = Field(32, ge=1, le=4096, description="rank r of every matrix that is made")
    K: int = Field(2048 * 16, ge=2, le=1 << 26, description="the most that out * kh and in * kw of a tensor may be")
    layout: Literal["view", "transposed"] = Field(
        "view", description="how the code becomes factors: as the reference does it, or as its equations read"
    )


@decoders("lowrank", LowRank, paper="arXiv:2405.16287")
class LowRankDecoder(nn.Module):
    """W = A B for a tensor (out, in, kh, kw): A (out kh, r), B (r, in kw), both from one code.

    An MLP d -> 4d -> 8d -> 2r², viewed as (2r, r), and a linear map r -> K after a ReLU give E (2r, K). `view`, as in
    the reference: E is viewed as (2K, r); A is the first rows of its first K, B^T of the others, so that a factor of
    m rows depends on ceil(m r / K) rows of the code alone, and wide maps are shared by all. `transposed`: A is the
    transpose of the first r rows of E, B the others, each cut to width.

    Only what reaches the factors is computed: those rows of the last layer of the MLP, those columns of E. The result
    is that of cutting the whole E.

    Vectors of n numbers are two at a time a tensor (2n, 1), the first a norm's scale, the second a bias. Positions
    (1, T, D) are (T, D). Heads for any number of classes come the same way. InvalidInput for a tensor wider than K.

    Zhou et al., 2024, "LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100
    Parameters", arXiv:2405.16287.
    """

    def __init__(self, options: LowRank, site: Site) -> None:
        super().__init__()
        d, r = site.width, options.rank
        affordable(36 * d * d + 16 * d * r * r + r * options.K, f"the decoder 'lowrank' of rank {r:,}")
        self.options = options
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, 8 * d), nn.ReLU())
        self.code = nn.Linear(8 * d, 2 * r * r)
        self.expand = nn.Linear(r, options.K)

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a tensor that is wider than K."""
        for slot in spec.slots:
            most, wide = self.options.K, max(factors(slot))
            if kernel_shape(slot) is None:
                most, wide = most // 2, prod(slot.shape)
            if wide > most:
                fact = f"{printable(slot.name)} is {wide:,} wide; this generator makes at most {most:,}"
                raise InvalidInput(fact, "a generator with a larger K makes it")

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        slot = slots[0]
        start, stop, columns = factors(slot)
        hidden = self.mlp(codes)  # (B, S, 8d)
        left = self._factor(hidden, 0, start, stop)  # (B, S, out * kh, r)
        right = self._factor(hidden, 1, 0, columns)  # (B, S, in * kw, r)
        made = left @ right.transpose(-1, -2)  # (B, S, out * kh, in * kw)
        out, into, height, width = kernel_shape(slot) or (stop - start, 1, 1, 1)
        made = made.reshape(*codes.shape[:2], out, height, into, width).transpose(3, 4)
        return made.reshape(*codes.shape[:2], *slot.shape)

    def _factor(self, hidden: Tensor, half: int, start: int, stop: int) -> Tensor:
        """Rows start..stop of A (half 0) or of B^T (half 1): (B, S, stop - start, r)."""
        r, most = self.options.rank, self.options.K
        if self.options.layout == "transposed":
            code = self._code(hidden, half * r, half * r + r)  # (B, S, r, r)
            return linear(code, self.expand.weight[start:stop], self.expand.bias[start:stop]).transpose(-1, -2)
        # The numbers start * r .. stop * r of the flat half: within one row of E, a part of it; else whole rows.
        first, last = start * r // most, -(-stop * r // most)
        begin = start * r - first * most
        end = begin + (stop - start) * r
        low, high = (begin, end) if last - first == 1 else (0, most)
        code = self._code(hidden, half * r + first, half * r + last)  # (B, S, last - first, r)
        rows = linear(code, self.expand.weight[low:high], self.expand.bias[low:high])
        return rows.flatten(2)[..., begin - low : end - low].reshape(*hidden.shape[:2], stop - start, r)

    def _code(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Rows first..last of the code (2r, r), rectified."""
        r = self.options.rank
        rows = linear(hidden, self.code.weight[first * r : last * r], self.code.bias[first * r : last * r])
        return relu(rows).reshape(*hidden.shape[:2], last - first, r)


def factors(slot: Slot) -> tuple[int, int, int]:
    """The rows of A from, up to, and the columns of B that a tensor is made of.

    >>> factors(Slot("conv", (384, 3, 16, 16), "F32", "kernel", 768))
    (0, 6144, 48)
    >>> factors(Slot("bias", (10,), "F32", "bias", 64))
    (10, 20, 1)
    """
    shape = kernel_shape(slot)
    if shape is None:
        count = prod(slot.shape)
        return (count, 2 * count, 1) if second(slot) else (0, count, 1)
    out, into, height, width = shape
    return 0, out * height, into * width
