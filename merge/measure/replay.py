"""The gradient of each example by running a module again, alone: what holds for any module, and for whole models.

torch.func's vmap of vjp where the module can be run so; else one example after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from paramsmith.errors import Failed
from paramsmith.userfile import call_user

from .calls import Call, tensors_in, with_tensors

# Bytes of per-example gradients that are held at once, unless one example's are more.
_PIECE = 1 << 26
_WHERE = "the task's model"


@dataclass
class Replay:
    """A module, what it was given, and the gradients (examples x k, ...) of its results.

    `split` says of each tensor among the arguments whether its rows belong to the examples; the others they share.
    `maps` is whether to try vmap, and turns False where that fails.
    """

    module: nn.Module
    arguments: tuple[object, ...]
    keywords: dict[str, object]
    split: tuple[bool, ...]
    places: tuple[int, ...]  # the results that have a gradient
    gradients: tuple[Tensor, ...]
    examples: int
    maps: bool = True

    @classmethod
    def of(cls, call: Call, split: tuple[bool, ...], gradients: Sequence[Tensor | None], examples: int) -> Replay:
        """Of a recorded call; a result without a gradient counts as one with zeros."""
        like = next(g for g in gradients if g is not None)
        known = [like.new_zeros(s) if g is None else g for g, s in zip(gradients, call.shapes, strict=True)]
        return cls(call.module, call.arguments, call.keywords, split, call.places, tuple(known), examples)

    def squares(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
        """{name in the module: squared gradients, summed over some examples}, until all examples were summed."""
        plain = {name: parameter.detach() for name, parameter in parameters.items()}
        step = max(1, _PIECE // sum(4 * parameter.numel() for parameter in plain.values()))
        for start in range(0, self.examples, step):
            stop = min(start + step, self.examples)
            if self.maps:
                try:
                    yield _summed(call_user(self._mapped, _WHERE, plain, start, stop))
                    continue
                except Failed:
                    self.maps = False
            for example in range(start, stop):
                yield _summed(call_user(self._alone, _WHERE, plain, example))

    def size(self) -> float:
        """How large the terms are that gradients are sums of."""
        given = [float(t.detach().abs().amax()) for t in self._tensors() if t.is_floating_point() and t.numel()]
        return max(float(g.abs().amax()) for g in self.gradients) * max(1.0, *given, 1.0)

    def _mapped(self, parameters: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
        def pulled(rows: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> dict[str, Tensor]:
            def run(parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
                return self._results(parameters, rows)

            found: dict[str, Tensor] = vjp(run, parameters)[1](wanted)[0]
            return found

        rows, wanted = self._rows(start, stop)
        with torch.no_grad(), warnings.catch_warnings():  # no graph beyond the parameters asked for
            warnings.simplefilter("ignore")  # of operations that are slow here
            mapped: dict[str, Tensor] = vmap(pulled)(rows, wanted)
        return mapped

    def _alone(self, parameters: dict[str, Tensor], example: int) -> dict[str, Tensor]:
        rows, wanted = self._rows(example, example + 1)
        leaves = {name: parameter.clone().requires_grad_() for name, parameter in parameters.items()}
        with torch.enable_grad():
            results = self._results(leaves, tuple(t[0] for t in rows))
        known = [(r, w[0]) for r, w in zip(results, wanted, strict=True) if r.requires_grad]
        if not known:
            return {}
        asked = ([r for r, _ in known], list(leaves.values()), [w for _, w in known])
        found = torch.autograd.grad(*asked, allow_unused=True)
        return {name: g[None] for name, g in zip(leaves, found, strict=True) if g is not None}

    def _results(self, parameters: dict[str, Tensor], rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = iter(rows)
        tensors = (next(own) if split else t for t, split in zip(self._tensors(), self.split, strict=True))
        given = with_tensors((self.arguments, self.keywords), tensors)
        arguments, keywords = given if isinstance(given, tuple) else ((), {})
        results = list(tensors_in(functional_call(self.module, parameters, arguments, keywords)))
        return tuple(results[place] for place in self.places)

    def _rows(self, start: int, stop: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What belongs to these examples: (examples, k, ...) of the arguments, and of the gradients."""

        def cut(t: Tensor) -> Tensor:
            return t.reshape(self.examples, len(t) // self.examples, *t.shape[1:])[start:stop]

        own = (t for t, split in zip(self._tensors(), self.split, strict=True) if split)
        return tuple(map(cut, own)), tuple(map(cut, self.gradients))

    def _tensors(self) -> list[Tensor]:
        return [tensor.detach() for tensor in tensors_in((self.arguments, self.keywords))]


def _summed(gradients: object) -> dict[str, Tensor]:
    found = gradients if isinstance(gradients, dict) else {}
    return {name: gradient.square().sum(0) for name, gradient in found.items()}
