"""Block programs: what a worker runs on one block, eager or compiled. `python -m` this file compiles one.

A program takes flat tensors: the raw block (sources, n), every varying parameter, every survey value so far, for random
methods the keys, start and index, and last the buffers it fills. Conversion, deltas, the method and the rounding are
all in it, so that compiled they are one loop.
"""

from __future__ import annotations

import functools
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
from paramsmith.surveys import Seen, Survey

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
    statistics: int = 0  # of the sources, the last
    otherwise: bool = False  # the method's own function is not for these tensors

    @property
    def rows(self) -> int:
        """Models in the method's block."""
        return self.sources - self.deltas - self.statistics


def torch_named(name: str) -> torch.dtype:
    """`float32` -> torch.float32."""
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype


@dataclass(frozen=True)
class Frame:
    """One block as programs see it: sources (sources, n), base (n), and the method's arguments."""

    wide: Tensor
    base: Tensor | None
    block: Tensor
    seen: Seen
    p: Resolved[Any]

    def of(self, survey: Survey) -> Tensor:
        """What a survey's function makes of the block."""
        return survey.of(self.block, self.seen, self.p)


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
        held = len(wide) - self.spec.statistics
        base, block = (wide[0], wide[1:held]) if self.spec.deltas else (None, wide[:held])
        block = block if base is None else block - base
        measured = wide[held:] if self.spec.statistics else None  # (models, n)
        rest = list(flat[1:])
        numbers = {name: rest.pop(0) for name in self.spec.numbers}
        values = {name: rest.pop(0) for name in self.spec.seen}
        draw = None
        if self.method.random:
            key, start, index = rest.pop(0), rest.pop(0), rest.pop(0)
            draw = lambda: ops.uniform(key, start, index)  # noqa: E731 - a survey may not want it
        frame = Frame(wide, base, block, Seen(values, draw, measured), Resolved(self.options, numbers, {}))
        self.fill(frame, rest)

    def fill(self, frame: Frame, buffers: list[Tensor]) -> None:
        """What this kind of program computes."""
        raise NotImplementedError

    def survey(self) -> Survey:
        """The survey this program serves."""
        return next(s for s in self.method.surveys(self.options) if s.name == self.spec.survey)


class OutputProgram(BlockProgram):
    """Buffers: the merged block (n), rounded once; the largest sum of the sources' magnitudes (1,), NaN if any is."""

    def fill(self, frame: Frame, buffers: list[Tensor]) -> None:
        """Fill the buffers."""
        out, top = buffers
        function = self.method.otherwise if self.spec.otherwise and self.method.otherwise else self.method.function
        value, base = function(frame.block, frame.seen, frame.p), frame.base
        # base - (0 - value) is base + value, and leaves a base of -0.0 as it is where the update is 0
        value = (value if base is None else base - (0 - value)).to(out.dtype)
        out.copy_(value)
        size = frame.wide.abs().sum(0)
        if out.dtype == torch.float16:  # whose range is narrow enough to leave
            size = size + value.to(self.wide).abs()
        top.copy_(size.amax(-1, keepdim=True))


class OrderProgram(BlockProgram):
    """Buffers, after the brackets low and high (rows, ranks): scores (rows, n), -inf for NaN; marks of those within any
    bracket; and for every rank a mark of those not below its bracket. All element by element, so it is one loop.
    """

    def fill(self, frame: Frame, buffers: list[Tensor]) -> None:
        """Fill the buffers."""
        low, high, scores, marks, *reached = buffers
        score = ops.known(frame.of(self.survey()), -torch.inf)
        scores.copy_(score)
        ends = [(low[:, k : k + 1], high[:, k : k + 1]) for k in range(len(reached))]
        if torch.compiler.is_compiling():  # as floats, which kernels vectorize
            first = [ops.ones_where(score >= least, score) for least, _ in ends]
            within = [ops.keep(score <= most, above) for above, (_, most) in zip(first, ends, strict=True)]
        else:
            first = [score >= least for least, _ in ends]
            within = [above & (score <= most) for above, (_, most) in zip(first, ends, strict=True)]
        marks.copy_(functools.reduce(torch.maximum, within).to(torch.uint8))
        for buffer, above in zip(reached, first, strict=True):
            buffer.copy_(above.to(torch.uint8))


class SumProgram(BlockProgram):
    """Buffer: each term's sum over each canonical cut (terms, cuts), float64; the rest of a cut comes alone."""

    def fill(self, frame: Frame, buffers: list[Tensor]) -> None:
        """Fill the buffers."""
        (sums,) = buffers
        terms = frame.of(self.survey())  # (terms, n)
        length = CUT if torch.compiler.is_compiling() else min(CUT, terms.shape[1])
        per_cut = terms.view(len(terms), -1, length)
        sums.copy_(per_cut.double().sum(-1))


class ExtremesProgram(BlockProgram):
    """Buffer: smallest and largest of each row (rows, 2)."""

    def fill(self, frame: Frame, buffers: list[Tensor]) -> None:
        """Fill the buffers."""
        (ends,) = buffers
        rows = frame.of(self.survey())
        ends.copy_(torch.stack([ops.known(rows, torch.inf).amin(-1), ops.known(rows, -torch.inf).amax(-1)], 1))


KINDS: Mapping[str, type[BlockProgram]] = {
    "output": OutputProgram,
    "order": OrderProgram,
    "sum": SumProgram,
    "extremes": ExtremesProgram,
}


def program(spec: Spec, method: MergeMethod, options: Params) -> nn.Module:
    """The eager program of a spec."""
    return KINDS[spec.kind](spec, method, options)


def buffers(spec: Spec, n: int) -> list[tuple[tuple[int, ...], torch.dtype, int | None]]:
    """Shape, dtype and free dimension of the buffers a program fills."""
    wide, rows = torch_named(spec.wide), spec.rows
    if spec.kind == "output":
        return [((n,), torch_named(spec.out), 0), ((1,), wide, None)]
    if spec.kind == "order":
        mark = ((rows, n), torch.uint8, 1)
        return [((rows, n), wide, 1), *[mark] * (1 + spec.ranks)]
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
    if spec.kind == "order":
        inputs += [torch.zeros(spec.rows, spec.ranks, dtype=torch_named(spec.wide)) for _ in ("low", "high")]
        dynamic += [None, None]
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
