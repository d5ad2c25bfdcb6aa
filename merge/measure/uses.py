"""The gradient of each example with respect to a weight, from what a module was given and the gradient of its result.

A linear layer's is the product of the two, summed over positions. It is made for a few rows of the weight at a time, so
that it lies in the cache and never as a whole in memory; where there is one position its square is the product of
squares, Σ_b (g_b a_bᵀ)² = (G²)ᵀ A². An embedding's has as many rows as the example has words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from .calls import Call
from .inputs import as_wide, first_tensor, is_convolution, is_transposed, patches

# Bytes of per-example gradients made at once: what a core's cache holds, or what keeps a GPU busy.
_PIECE = {"cpu": 1 << 20, "cuda": 1 << 26}

Squares: TypeAlias = Iterator[tuple[slice | Tensor, Tensor]]


class Use(Protocol):
    """One use of a weight seen as (rows, columns): the gradients of all examples for some of its rows."""

    def rows(self, start: int, stop: int) -> Tensor:
        """(examples, stop - start, columns)."""
        ...

    def size(self) -> float:
        """How large the terms are that its entries are sums of."""
        ...


@dataclass(frozen=True)
class Product:
    """left_bᵀ right_b: left (examples, positions, rows), right (examples, positions, columns)."""

    left: Tensor
    right: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """(examples, stop - start, columns)."""
        return torch.bmm(self.left[:, :, start:stop].transpose(1, 2), self.right)

    def size(self) -> float:
        """How large the terms are that its entries are sums of."""
        return float(self.left.abs().amax() * self.right.abs().amax())


@dataclass(frozen=True)
class Given:
    """Gradients (examples, rows, columns) that are small enough to be there already, with the size of their terms."""

    gradients: Tensor
    terms: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """(examples, stop - start, columns)."""
        return self.gradients[:, start:stop]

    def size(self) -> float:
        """How large the terms are that its entries are sums of."""
        return float(self.terms.abs().amax())


@dataclass(frozen=True)
class Lookup:
    """Row words[b, p] gets gradients[b, p]: words (examples, positions), gradients (examples, positions, columns)."""

    words: Tensor
    gradients: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """(examples, stop - start, columns)."""
        found = self.gradients.new_zeros(len(self.words), stop - start, self.gradients.shape[-1])
        example, position = torch.nonzero((self.words >= start) & (self.words < stop), as_tuple=True)
        at = (example, self.words[example, position] - start)
        return found.index_put_(at, self.gradients[example, position], accumulate=True)

    def squares(self) -> Squares:
        """The rows that any example has a word for."""
        for words, gradients in zip(self.words, self.gradients, strict=True):
            unique, place = words.unique(return_inverse=True)
            sums = gradients.new_zeros(len(unique), gradients.shape[-1])
            yield unique, sums.index_put_((place,), gradients, accumulate=True).square_()

    def size(self) -> float:
        """How large the terms are that its entries are sums of."""
        return float(self.gradients.abs().amax())


def summed_squares(uses: Sequence[Use], examples: int, rows: int, columns: int, device: torch.device) -> Squares:
    """(which rows, the squared gradients of the examples, summed) until every row was dealt with.

    The gradient of an example is the sum over the uses; rows that are left out are zero, those that come again add up.
    """
    only = uses[0] if len(uses) == 1 else None
    if isinstance(only, Lookup):
        yield from only.squares()
        return
    single = isinstance(only, Product) and only.left.shape[1] == 1
    step = max(1, _PIECE.get(device.type, _PIECE["cuda"]) // (4 * columns * (1 if single else examples)))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if isinstance(only, Product) and single:
            yield slice(start, stop), only.left[:, 0, start:stop].square().T @ only.right[:, 0].square()
            continue
        total = uses[0].rows(start, stop)
        for use in uses[1:]:
            total = total + use.rows(start, stop)
        yield slice(start, stop), total.square().sum(0)


def uses_of(call: Call, gradient: Tensor, examples: int) -> dict[str, Use]:
    """{parameter of the module: its use} in a call of a `tabled` module, from the gradient of its one result."""
    x, module = first_tensor(call.arguments, call.keywords), call.module
    if x is None or not tabled(module):
        raise TypeError(f"{type(module).__name__} is not among the modules with a rule")
    x, gradient = x.detach(), as_wide(gradient)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(module, as_wide(x), gradient, examples)
    if isinstance(module, nn.Embedding):
        return _embedding(module, x, gradient, examples)
    if is_convolution(module):
        return _convolution(module, as_wide(x), gradient, examples)
    left = gradient.reshape(examples, -1, gradient.shape[-1])
    right = as_wide(x).reshape(examples, -1, x.shape[-1])
    weight = Product(right, left) if is_transposed(module) else Product(left, right)
    return {"weight": weight, "bias": Given(left.sum(1).unsqueeze(2), left)}


def tabled(module: nn.Module) -> bool:
    """Whether there is a rule for the module; subclasses may compute something else."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    return type(module) in (nn.Linear, nn.LayerNorm) or is_transposed(module) or is_convolution(module)


def _convolution(module: nn.Module, x: Tensor, gradient: Tensor, examples: int) -> dict[str, Use]:
    right = patches(module, x)  # (rows, groups, positions, inputs)
    left = gradient.reshape(len(right), right.shape[1], -1, right.shape[2]).transpose(2, 3)  # ..., positions, outputs)
    if len(right) != examples:  # several rows an example: more positions
        left, right = (_fewer(t, examples) for t in (left, right))
    bias = Given(left.sum(2).flatten(1).unsqueeze(2), left)
    if right.shape[1] == 1:
        return {"weight": Product(left[:, 0], right[:, 0]), "bias": bias}
    whole = (left.transpose(2, 3) @ right).flatten(1, 2)  # (examples, outputs, inputs)
    return {"weight": Given(whole, left.abs().amax() * right.abs().amax()), "bias": bias}


def _fewer(t: Tensor, examples: int) -> Tensor:
    """(examples x k, groups, positions, n) as (examples, groups, k x positions, n)."""
    return t.reshape(examples, -1, *t.shape[1:]).transpose(1, 2).flatten(2, 3)


def _layer_norm(module: nn.LayerNorm, x: Tensor, gradient: Tensor, examples: int) -> dict[str, Use]:
    scaled = gradient * functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
    rows = module.normalized_shape[0]
    columns = math.prod(module.normalized_shape[1:])
    sums = [Given(t.reshape(examples, -1, rows, columns).sum(1), t) for t in (scaled, gradient)]
    return {"weight": sums[0], "bias": sums[1]}


def _embedding(module: nn.Embedding, x: Tensor, gradient: Tensor, examples: int) -> dict[str, Use]:
    words = x.expand(gradient.shape[:-1]).reshape(examples, -1)
    gradient = gradient.reshape(examples, -1, gradient.shape[-1])
    if module.padding_idx is not None:
        gradient = gradient * (words != module.padding_idx)[..., None]
    return {"weight": Lookup(words, gradient)}
