"""Weights as fixed random combinations of a short code: random matrices that exist a block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from paramsmith.hypernet.kept import Kept
from paramsmith.hypernet.parametrizations.schemes import spread
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import bits, uniform
from paramsmith.hypernet.targets.target import Slot
from paramsmith.params import Params
from paramsmith.parts import decoders

BLOCK = 1 << 18  # entries of a matrix that are made at a time
HELD = 1 << 26  # bytes of matrices that are remembered, which is all of them for a small target
Kind = Literal["dense", "rademacher", "sparse"]


class Random(Params):
    """Options of the decoder `random`."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the matrices; with the code, all there is to keep")
    kind: Kind = Field("dense", description="entries: U of variance 1, -1 or 1, or a few of -1 and 1 a row")
    nonzeros: int = Field(16, ge=1, description="entries a row that are not 0, of the sparse kind")
    latent_std: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="standard deviation of codes, which is undone"
    )
    least: float = Field(
        0.01, ge=0, allow_inf_nan=False, description="standard deviation of tensors that a target begins as constants"
    )


@decoders("random", Random, paper="arXiv:2403.19163")
class RandomDecoder(nn.Module):
    """D'OH: the n numbers of a code become any target, theta_l = G_l z, with fixed random G_l made anew when needed.

    G_l is hashed from the seed and the name of its tensor, with the same bits everywhere, a block of rows at a time,
    forward and backward: nothing is stored, and about 64 MB are remembered. The factor on G_l gives theta_l the
    standard deviation of its own initialisation: Var(theta_l) = n Var(G_l) Var(z).

    dense and rademacher take n operations a weight, sparse takes `nonzeros`: for large targets. Nothing is learned
    here; with the encoder `empty` the code is, which is the intrinsic dimension of a task.

    Papers: D'OH, arXiv:2403.19163; intrinsic dimension, arXiv:1804.08838.
    """

    def __init__(self, options: Random, site: Site) -> None:
        super().__init__()
        self.options = options
        self._kept = Kept(HELD)

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, n) -> (B, S, *shape)."""
        made = [self._made(codes[:, place], slot) for place, slot in enumerate(slots)]
        return torch.stack(made, dim=1).view(*codes.shape[:2], *slots[0].shape)

    def matrix(self, slot: Slot, columns: int) -> Matrix:
        """G_l, (numbers of the slot, columns)."""
        options = self.options
        terms = min(options.nonzeros, columns) if options.kind == "sparse" else columns
        std = spread(slot) or options.least
        factor = std / (math.sqrt(terms) * options.latent_std)
        return Matrix(options.seed, slot.name, math.prod(slot.shape), columns, options.kind, terms, factor, self._kept)

    def _made(self, code: Tensor, slot: Slot) -> Tensor:
        return cast(Tensor, _Product.apply(code, self.matrix(slot, code.shape[1]), False))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Matrix:
    """A random matrix times `factor`, as the products with it. Entries have variance 1, or `terms` a row are not 0."""

    seed: int
    key: str
    rows: int
    columns: int
    kind: Kind
    terms: int
    factor: float
    kept: Kept = field(default_factory=lambda: Kept(0), compare=False, repr=False)

    def times(self, x: Tensor) -> Tensor:
        """x G^T: (B, columns) -> (B, rows)."""
        made = x.new_empty(len(x), self.rows)
        for part in self._parts():
            if self.kind == "sparse":
                place, sign = self._places(part, x.device)
                torch.sum(x[:, place] * sign, -1, out=made[:, part.start : part.stop])
            else:
                made[:, part.start : part.stop] = x @ self.entries(part, x.device).T.to(x.dtype)
        return made.mul_(self.factor)

    def transposed_times(self, x: Tensor) -> Tensor:
        """x G: (B, rows) -> (B, columns)."""
        made = x.new_zeros(len(x), self.columns)
        for part in self._parts():
            own = x[:, part.start : part.stop]
            if self.kind == "sparse":
                place, sign = self._places(part, x.device)
                made.scatter_add_(1, place.expand(len(x), *place.shape).flatten(1), (own[..., None] * sign).flatten(1))
            else:
                made += own @ self.entries(part, x.device).to(x.dtype)
        return made.mul_(self.factor)

    def entries(self, part: range, device: torch.device) -> Tensor:
        """Some rows of G, without the factor."""
        return self.kept.get((self, part, device), lambda: self._made(part, device))

    def _made(self, part: range, device: torch.device) -> Tensor:
        size = (len(part), self.columns)
        if self.kind == "dense":
            return uniform(self.seed, self.key, size, math.sqrt(3), device=device, first=part.start)
        if self.kind == "rademacher":
            words = bits(self.seed, self.key, (len(part), -(-self.columns // 32)), device=device, first=part.start)
            single = (words[..., None] >> torch.arange(32, dtype=torch.int32, device=device)) & 1
            return (single * 2 - 1).flatten(1)[:, : self.columns].float()
        place, sign = self._places(part, device)
        return torch.zeros(size, device=device).scatter_add_(1, place, sign)

    def _parts(self) -> Iterator[range]:
        several = max(1, BLOCK // self.terms)
        for start in range(0, self.rows, several):
            yield range(start, min(start + several, self.rows))

    def _places(self, part: range, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of some rows, where their entries are, and whether -1 or 1: (rows, terms) each. One place may come twice."""
        size = (len(part), self.terms)
        made = lambda: bits(self.seed, self.key, size, device=device, first=part.start)  # noqa: E731
        words = self.kept.get((self, part, device, "words"), made)
        place = ((words & 0x7FFFFFFF).long() * self.columns) >> 31
        return place, torch.where(words < 0, -1.0, 1.0)


class _Product(torch.autograd.Function):
    """x G^T, or x G; linear, so that each is what the other's gradient is made by, as often as is asked for."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, matrix: Matrix, transposed: bool) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed  # type: ignore[attr-defined]
        return matrix.transposed_times(x) if transposed else matrix.times(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        matrix, transposed = ctx.matrix, ctx.transposed  # type: ignore[attr-defined]
        return _Product.apply(grad_outputs[0], matrix, not transposed), None, None  # type: ignore[no-untyped-call]
