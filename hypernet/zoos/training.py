"""Many networks trained side by side, each on data of its own: one batched forward and backward pass a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.evaluation.finetune import row_count
from paramsmith.hypernet.protocols import Batch, Run, Target, Task
from paramsmith.hypernet.training.tasks import scalar
from paramsmith.userfile import call_user

Measure = Callable[[Run, Batch], Tensor]
_AHEAD = 16  # steps whose rows are drawn at once


class Rows:
    """Batches of examples, one a network, of any lengths; what all networks have in common is held once.

    Which rows a network sees depends on its own seed alone. InvalidInput for batches that have not the same names, or
    whose examples differ in shape.
    """

    def __init__(self, batches: Sequence[Batch], seeds: Sequence[int], device: str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._ahead: list[Tensor] = []
        self.lengths = torch.tensor([row_count(batch) for batch in batches])
        if not int(self.lengths.min()):
            raise InvalidInput("there are no rows to train on", "give the support of every episode examples")
        first = batches[0]
        for batch in batches:
            if {name: x.shape[1:] for name, x in batch.items()} != {name: x.shape[1:] for name, x in first.items()}:
                raise InvalidInput("the episodes' examples differ in shape", "give all of one target the same shape")
        shared = {name: x for name, x in first.items() if all(_same(x, batch[name]) for batch in batches)}
        self._shared = {name: x.to(device) for name, x in shared.items()}
        longest = int(self.lengths.max())
        self._own = {
            name: torch.stack([_repeated(batch[name], longest) for batch in batches]).to(device)
            for name in first
            if name not in shared
        }

    def drawn(self, count: int) -> dict[str, Tensor]:
        """So many rows of each network's, drawn with replacement: (B, count, ...)."""
        if not self._ahead:
            shares = [torch.rand(_AHEAD, count, generator=g, dtype=torch.float64) for g in self._generators]
            self._ahead = list((torch.stack(shares, 1) * self.lengths[:, None]).long())  # (B, count) each
        chosen = self._ahead.pop(0)
        picked = {name: _rows(x, chosen) for name, x in self._shared.items()}
        for name, x in self._own.items():
            first = torch.arange(len(x))[:, None] * x.shape[1]  # of each network, in one tensor of all rows
            picked[name] = _rows(x.flatten(0, 1), first + chosen)
        return picked


def trained(
    task: Task,
    target: Target,
    starts: Mapping[str, Tensor],
    rows: Rows,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    tell: Callable[[int], None],
) -> dict[str, Tensor]:
    """The weights (B, *shape) after Adam from `starts`, its rate falling from `lr` to 0 as half a cosine.

    Each network sees `batch_size` rows of its own a step; one that leaves the finite numbers does not disturb others.
    """
    weights = {name: start.detach().clone().requires_grad_(True) for name, start in starts.items()}
    optimiser = torch.optim.Adam(list(weights.values()), lr=lr, foreach=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        losses = measured(task.loss, "loss", target, weights, rows.drawn(batch_size))
        if not losses.requires_grad:
            raise Failed("the task's loss does not depend on the weights", "make it of what `run` gives")
        optimiser.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        tell(step + 1)
    return {name: weight.detach() for name, weight in weights.items()}


def measured(
    measure: Measure, what: str, target: Target, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> Tensor:
    """What the task says of each of (B, *shape) weights on its own batch (B, rows, ...): (B,).

    Failed where its code raises, or gives no number.
    """

    def one(held: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
        return scalar(measure(partial(target.call, held), own), what)

    where = f"the task's {what}, run for several networks by torch.vmap,"
    return cast(Tensor, call_user(torch.vmap(one, randomness="different"), where, dict(weights), dict(batch)))


@torch.no_grad()
def judged(
    measure: Measure, what: str, target: Target, weights: Mapping[str, Tensor], batches: Sequence[Batch]
) -> list[float]:
    """What the task says of each of (B, *shape) weights, one after the other, as batches are of any length."""
    device = next(iter(weights.values())).device
    found = []
    for i, one in enumerate(batches):
        run = partial(target.call, {name: weight[i] for name, weight in weights.items()})
        batch = {name: x.to(device) for name, x in one.items()}
        found.append(float(scalar(call_user(measure, f"the task's {what}", run, batch), what)))
    return found


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    """x[chosen], which takes several times as long."""
    return x.index_select(0, chosen.flatten().to(x.device)).view(*chosen.shape, *x.shape[1:])


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether they are one tensor in memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def _repeated(x: Tensor, length: int) -> Tensor:
    """As many rows, of which those beyond the end are never drawn."""
    return x if len(x) == length else x[torch.arange(length) % len(x)]
