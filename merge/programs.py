"""Block programs: what a worker runs on one block, eager or compiled. `python -m` this file compiles one.

A program takes flat tensors: the raw block (sources, n), every varying parameter, every survey value so far, for random
methods the keys, start and index, and last the buffers it fills. Conversion, deltas, the method and the rounding are
all in it, so that compiled they are one loop.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paramsmith import ops
from paramsmith.blocks import CUT
from paramsmith.params import Params, Resolved
from paramsmith.registry import MergeMethod, find_method
from paramsmith.surveys import Extremes, OrderStatistic, Seen, Sum

Kind = Literal["output", "order", "sum", "extremes"]


@dataclass(frozen=True)
class Spec:
    """Everything that shapes a program, and nothing that varies from block to block; plain data, so that it travels."""

    kind: Kind
    survey: str  # the survey's name; empty for the output pass
    method: str
    options: Mapping[str, object]
    sources: int
    raw: str
    wide: str
    out: str
    deltas: bool
    numbers: Mapping[str, int]  # {varying parameter: values}
    seen: Mapping[str, tuple[tuple[int, ...], str]]  # {survey: (shape, dtype)}
    ranks: int = 1
    terms: int = 1

    @property
    def rows(self) -> int:
        """Models in the method's block."""
        return self.sources - self.deltas


def torch_named(name: str) -> torch.dtype:
    """`float32` -> torch.float32."""
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype


class BlockProgram(nn.Module):
    """What all programs share: from flat tensors to the method's arguments."""

    def __init__(self, spec: Spec, method: MergeMethod, options: Params) -> None:
        super().__init__()
        self.spec, self.method, self.options = spec, method, options
        self.wide = torch_named(spec.wide)
        self.settings = method.params.settings()

    def forward(self, *flat: Tensor) -> None:
        """Fill the buffers at the end of `flat`."""
        wide = flat[0].to(self.wide)  # (sources, n)
        base, block = (wide[0], wide[1:]) if self.spec.deltas else (None, wide)
        block = block if base is None else block - base
        rest = list(flat[1:])
        numbers = {name: rest.pop(0) for name in self.spec.numbers}
        values = {name: rest.pop(0) for name in self.spec.seen}
        draw = None
        if self.method.random:
            key, start, index = rest.pop(0), rest.pop(0), rest.pop(0)
            draw = lambda: ops.uniform(key, start, index)  # noqa: E731 - a survey may not want it
        self.fill(wide, base, block, Seen(values, draw), Resolved(self.options, numbers, {}), rest)

    def fill(
        self, wide: Tensor, base: Tensor | None, block: Tensor, seen: Seen, p: Resolved[Any], buffers: list[Tensor]
    ) -> None:
        """What this kind of program computes."""
        raise NotImplementedError

    def survey(self) -> OrderStatistic | Sum | Extremes:
        """The survey this program serves."""
        return next(s for s in self.method.surveys(self.options) if s.name == self.spec.survey)


class OutputProgram(BlockProgram):
    """Buffers: the merged block (n), rounded once; and the largest sum of the sources' magnitudes (1,), NaN if any is."""

    def fill(self, wide, base, block, seen, p, buffers):  # type: ignore[no-untyped-def]  # noqa: D102
        out, top = buffers
        value = self.method.function(block, seen, p)
        value = (value if base is None else base + value).to(out.dtype)
        out.copy_(value)
        size = wide.abs().sum(0)
        if out.dtype == torch.float16:  # whose range is narrow enough to leave
            size = size + value.to(self.wide).abs()
        top.copy_(size.amax(-1, keepdim=True))


class OrderProgram(BlockProgram):
    """Buffers: scores (rows, n), marks of those within any bracket, and the count below each (rows, ranks)."""

    def fill(self, wide, base, block, seen, p, buffers):  # type: ignore[no-untyped-def]  # noqa: D102
        low, high, scores, marks, below = buffers
        score = self.survey().of(block, seen, p)  # type: ignore[union-attr]
        score = torch.where(score == score, score, torch.full((), -torch.inf, dtype=score.dtype, device=score.device))
        scores.copy_(score)
        inside = torch.zeros((), dtype=score.dtype, device=score.device)
        for k in range(self.spec.ranks):
            within = ops.ones_where(score >= low[:, k : k + 1], score)
            within = ops.keep(score <= high[:, k : k + 1], within)
            inside = torch.maximum(inside, within)
        marks.copy_(inside.to(torch.uint8))
        # counts are exact in float32 up to 2**24 elements a block
        below.copy_(torch.stack([ops.ones_where(score < low[:, k : k + 1], score).sum(-1) for k in range(low.shape[1])], 1))


class SumProgram(BlockProgram):
    """Buffer: each term's sum over each canonical cut (terms, cuts), float64; a lone rest of a cut is one of its own."""

    def fill(self, wide, base, block, seen, p, buffers):  # type: ignore[no-untyped-def]  # noqa: D102
        (sums,) = buffers
        terms = self.survey().of(block, seen, p)  # type: ignore[union-attr]  # (terms, n)
        per_cut = terms.unflatten(-1, (-1, min(CUT, block.shape[-1]) if not torch.compiler.is_exporting() else CUT))
        sums.copy_(per_cut.double().sum(-1))


class ExtremesProgram(BlockProgram):
    """Buffer: smallest and largest of each row (rows, 2)."""

    def fill(self, wide, base, block, seen, p, buffers):  # type: ignore[no-untyped-def]  # noqa: D102
        (ends,) = buffers
        rows = self.survey().of(block, seen, p)  # type: ignore[union-attr]
        ends.copy_(torch.stack([rows.amin(-1), rows.amax(-1)], 1))


KINDS: Mapping[Kind, type[BlockProgram]] = {
    "output": OutputProgram,
    "order": OrderProgram,
    "sum": SumProgram,
    "extremes": ExtremesProgram,
}


def program(spec: Spec, method: MergeMethod, options: Params) -> BlockProgram:
    """The eager program of a spec."""
    return KINDS[spec.kind](spec, method, options)


def buffers(spec: Spec, n: int) -> list[tuple[tuple[int, ...], torch.dtype, int | None]]:
    """Shape, dtype and free dimension of what follows the method's arguments: low and high, then the outputs."""
    wide, rows = torch_named(spec.wide), spec.rows
    if spec.kind == "output":
        return [((n,), torch_named(spec.out), 0), ((1,), wide, None)]
    if spec.kind == "order":
        ranks = ((rows, spec.ranks), wide, None)
        return [ranks, ranks, ((rows, n), wide, 1), ((rows, n), torch.uint8, 1), ranks]
    if spec.kind == "sum":
        return [((spec.terms, -(-n // CUT)), torch.float64, 1)]
    return [((spec.terms, 2), wide, None)]


def example(spec: Spec, random: bool) -> tuple[list[Tensor], list[Mapping[int, object] | None]]:
    """Inputs to compile a program with, and which of their dimensions are free."""
    cuts = torch.export.Dim("cuts", min=1, max=1 << 10)
    free = CUT * cuts if spec.kind == "sum" else torch.export.Dim("n", min=1, max=1 << 24)
    n = 2 * CUT
    inputs = [torch.zeros(spec.sources, n, dtype=torch_named(spec.raw))]
    dynamic: list[Mapping[int, object] | None] = [{1: free}]
    shapes: list[tuple[Sequence[int], torch.dtype]] = [
        ((count, 1) if kind == "model" else (1,), torch_named(spec.wide))
        for kind, count in ((find_method(spec.method).params.settings()[k], c) for k, c in spec.numbers.items())
    ]
    shapes += [(shape, torch_named(dtype)) for shape, dtype in spec.seen.values()]
    if random:
        shapes += [((1 + spec.rows,), torch.int32), ((1,), torch.int32)]
    inputs += [torch.zeros(*shape, dtype=dtype) for shape, dtype in shapes]
    dynamic += [None] * len(shapes)
    if random:
        inputs.append(torch.zeros(n, dtype=torch.int32))
        dynamic.append({0: free})
    for shape, dtype, axis in buffers(spec, n):
        inputs.append(torch.zeros(shape, dtype=dtype))
        dynamic.append(None if axis is None else {axis: cuts if spec.kind == "sum" else free})
    return inputs, dynamic


def main(path: str, text: str) -> None:
    """Compile the program that `text`, a Spec as JSON, describes into a kernel at `path`."""
    import json
    from pathlib import Path

    from paramsmith.kernels import compile_program
    from paramsmith.params import validated

    plain = json.loads(text)
    plain["seen"] = {name: (tuple(shape), dtype) for name, (shape, dtype) in plain["seen"].items()}
    spec = Spec(**plain)
    method = find_method(spec.method)
    made = program(spec, method, validated(method.params, spec.options, spec.method))
    compile_program(made, *example(spec, method.random), Path(path))


def as_plain(spec: Spec) -> dict[str, object]:
    """A spec as JSON can hold it."""
    return asdict(spec)


if __name__ == "__main__":
    main(*sys.argv[1:])
