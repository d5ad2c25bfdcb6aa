"""Which ways to the gradients of single examples are right for a model: tried on a few examples, one by one.

A module whose first dimension is not the examples', a weight that is also used outside its module, an example that
depends on the others: all of these show when the same examples are sent through the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.task import Batch, examples_in

from .calls import Call, recorded
from .squares import Outputs, SquaredGradients, as_rows, task_outputs

# Examples that are sent through the model one by one.
_PROBED = 3
# Rounding may change a gradient by so many units in the last place of the terms it is a sum of, but by no more than
# this share of them. Kernels of GPUs round more coarsely.
_UNITS, _SHARE, _COARSE = 1000, 0.05, 0.02
_PART = 1 << 20  # elements that are compared at once


@dataclass(frozen=True)
class _Alone:
    """Examples sent through the model one by one."""

    values: Tensor
    lengths: dict[nn.Module, list[list[int]]]  # first dimensions of the tensors of each call, with one example
    squares: dict[str, Tensor]  # of the gradients, summed over the examples


def probe(engine: SquaredGradients, batch: Batch) -> int:
    """Find out what is right for this model; how many examples it took.

    InvalidInput when an example's outputs depend on the others in its batch, or on chance.
    """
    few = {name: tensor[:_PROBED] for name, tensor in batch.items()}
    alone = _one_by_one(engine, few)
    trust, many = engine.trust, examples_in(few, 0)
    trust.split, trust.widens = {}, False
    plain = engine.outputs(few)
    if not _close(plain.values, alone.values):
        fact = "the outputs of an example depend on the others in its batch, or on chance"
        raise InvalidInput(fact, "each example counts by itself: no dropout, no statistics of the batch")
    trust.split = {
        module: split
        for module, calls in plain.calls.items()
        if (split := _split(alone.lengths.get(module, []), calls, many)) is not None
    }
    outputs = _widened(engine, few, alone) or plain
    if _distrust(engine, outputs, alone):
        _distrust(engine, outputs, alone)
    return many


def _one_by_one(engine: SquaredGradients, batch: Batch) -> _Alone:
    values, lengths = [], {}
    squares = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in engine.parameters.items()}
    for number in range(examples_in(batch, 0)):
        with recorded(engine.modules) as calls:
            made = task_outputs(engine.task, {name: t[number : number + 1] for name, t in batch.items()}, 1)
        if not number:
            lengths = {module: [_lengths(call) for call in held] for module, held in calls.items()}
        values.append(made.detach())
        if not made.requires_grad:
            continue
        asked = list(engine.parameters.values())
        for name, gradient in zip(
            squares, torch.autograd.grad(made, asked, _cotangent(made, number), allow_unused=True), strict=True
        ):
            if gradient is not None:
                squares[name] += gradient.to(squares[name].dtype).square()
    return _Alone(torch.cat(values), lengths, squares)


def _split(alone: Sequence[Sequence[int]], calls: Sequence[Call], examples: int) -> tuple[bool, ...] | None:
    """Of each tensor among the arguments whether it grows with the examples; None when that is not so simple."""
    if len(alone) != len(calls):
        return None
    found: set[tuple[bool | None, ...]] = set()
    for before, call in zip(alone, calls, strict=True):
        now = _lengths(call)
        if len(before) != len(now):
            return None
        pairs = zip(before, now, strict=True)
        found.add(tuple(True if n == examples * b else False if n == b else None for b, n in pairs))
    only = found.pop() if len(found) == 1 else (None,)
    return tuple(bool(own) for own in only) if None not in only else None


def _lengths(call: Call) -> list[int]:
    """The first dimensions; a number is shared, which -1 stands for."""
    return [len(t) if t.ndim else -1 for t in call.tensors]


def _widened(engine: SquaredGradients, batch: Batch, alone: _Alone) -> Outputs | None:
    """The outputs with what examples share given to each of them; None where the model does not bear that."""
    engine.trust.widens = True
    with suppress(Failed, InvalidInput):
        outputs = engine.outputs(batch)
        if _close(outputs.values, alone.values):
            return outputs
    engine.trust.widens = False
    return None


def _distrust(engine: SquaredGradients, outputs: Outputs, alone: _Alone) -> bool:
    """Leave to the whole model what does not come out as it should; whether there was anything new to leave."""
    rest = {name: as_rows(squares.clone()) for name, squares in alone.squares.items()}
    sizes: dict[str, float | None] = {}
    for piece in engine.squares(outputs, _cotangent(outputs.values, None)):
        if isinstance(piece.rows, Tensor):
            rest[piece.name].index_add_(0, piece.rows, piece.values.to(rest[piece.name].dtype), alpha=-1)
        else:
            rest[piece.name][piece.rows] -= piece.values
        if piece.name not in sizes:
            sizes[piece.name] = None if piece.size is None else piece.size()
    largest = max((float(s.amax()) for s in alone.squares.values() if s.numel()), default=0.0) ** 0.5
    before = len(engine.trust.whole)
    for name, left in rest.items():
        size = sizes.get(name, 0.0)
        slack = _slack(left, outputs.values.dtype) * (largest if size is None else size)
        if _differs(left, alone.squares[name], slack):
            engine.trust.whole.add(name)
            if size is None:
                engine.distrust_vmap()
    return len(engine.trust.whole) > before


def _differs(left: Tensor, expected: Tensor, slack: float) -> bool:
    """Whether squares differ from those expected by `left` though their roots may by `slack`; a part at a time."""
    parts = zip(left.reshape(-1).split(_PART), expected.reshape(-1).split(_PART), strict=True)  # type: ignore[no-untyped-call]
    return any(bool((rest.abs() > 2 * whole.sqrt() * slack + slack**2).any()) for rest, whole in parts)


def _slack(tensor: Tensor, dtype: torch.dtype) -> float:
    return min(_UNITS * torch.finfo(dtype).eps, _COARSE if tensor.is_cuda else _SHARE)


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether outputs are the same but for rounding, and for what is nowhere a number."""
    if found.shape != expected.shape:
        return False
    slack = 3 * torch.finfo(found.dtype).eps ** 0.5 * float(expected.detach().nan_to_num(0, 0, 0).abs().amax())
    return torch.allclose(found.detach(), expected, rtol=0, atol=slack, equal_nan=True)


def _cotangent(outputs: Tensor, example: int | None) -> Tensor:
    """Some gradient at the outputs, other for every example; `example` gives the row of one."""
    rows = len(outputs) if example is None else 1
    count = outputs[0].numel()
    steps = torch.arange((example or 0) * count, (rows + (example or 0)) * count, device=outputs.device)
    return torch.cos(steps.double()).to(outputs.dtype).view(outputs.shape)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
