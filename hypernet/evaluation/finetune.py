"""Training a target on from given weights: many starts and learning rates side by side, as one batch of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.protocols import Batch, Run, Target, Task
from paramsmith.hypernet.training.tasks import scalar
from paramsmith.userfile import call_user

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Schedule:
    """How starts are trained on: by Adam, `batch_size` rows of the data a step (None: all), judged at `marks`."""

    marks: tuple[int, ...]
    batch_size: int | None = 64
    seed: int = 0


@dataclass(frozen=True)
class Curves:
    """Scores (B, marks) on two sets of data, and the weights of the end."""

    validation: Tensor
    report: Tensor
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """What is trained on, what chooses among runs, and what is reported; only the last goes into a table."""

    train: Batch
    validation: Batch
    report: Batch


def finetune(
    task: Task, target: Target, starts: Mapping[str, Tensor], rates: Tensor, data: Data, schedule: Schedule
) -> Curves:
    """Adam from `starts` (B, *shape) at learning rates (B,), every run seeing the same rows in the same order.

    A run that leaves the finite numbers stays where it was last finite, and so scores what it scored there.
    """
    weights = {name: start.detach().clone() for name, start in starts.items()}
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    rng = torch.Generator().manual_seed(schedule.seed)
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(max(schedule.marks) + 1):
        if step in schedule.marks:
            seen.append((scores(task, target, weights, data.validation), scores(task, target, weights, data.report)))
        if step == max(schedule.marks):
            break
        slopes = _gradients(task, target, weights, rows(data.train, schedule.batch_size, rng))
        _adam(weights, slopes, first, second, rates, step + 1)
    return Curves(torch.stack([s[0] for s in seen], 1), torch.stack([s[1] for s in seen], 1), weights)


@torch.no_grad()
def scores(task: Task, target: Target, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The score of each of (B, *shape) weights on one batch: (B,)."""
    return _measured(task.score, "score", target, weights, batch)


def rows(batch: Batch, count: int | None, rng: torch.Generator) -> Batch:
    """So many rows drawn from a batch, whose tensors all begin with one axis; the whole batch where it has less."""
    length = row_count(batch)
    if count is None or count >= length:
        return batch
    chosen = torch.randperm(length, generator=rng)[:count]
    return {name: tensor[chosen] for name, tensor in batch.items()}


def split(batch: Batch, share: float, seed: int) -> tuple[Batch, Batch]:
    """Rows of a batch dealt into two parts, the second with `share` of them and at least one."""
    length = row_count(batch)
    if length < 2:
        raise InvalidInput(f"{length} rows to train on", "the support of a test episode has at least two rows")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    cut = max(1, min(length - 1, round(length * share)))
    return (
        {name: tensor[order[cut:]] for name, tensor in batch.items()},
        {name: tensor[order[:cut]] for name, tensor in batch.items()},
    )


def row_count(batch: Batch) -> int:
    """How many rows all tensors of a batch have. InvalidInput where they differ, or there are none."""
    found: Sequence[int] = sorted({tensor.shape[0] if tensor.ndim else 0 for tensor in batch.values()})
    if len(found) != 1:
        told = f"a batch of tensors with {' and '.join(map(str, found)) or 'no'} rows"
        raise InvalidInput(told, "the tensors of support and query begin with one axis of examples")
    return found[0]


def _gradients(task: Task, target: Target, weights: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    leaves = {name: w.detach().requires_grad_(True) for name, w in weights.items()}
    losses = _measured(task.loss, "loss", target, leaves, batch)  # (B,)
    if not losses.requires_grad:
        raise Failed("the task's loss does not depend on the weights", "make it of what `run` gives, with gradients on")
    slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(leaves.items(), slopes, strict=True)}


def _measured(
    measure: Callable[[Run, Batch], Tensor], what: str, target: Target, weights: Mapping[str, Tensor], batch: Batch
) -> Tensor:
    """What the task says of each of (B, *shape) weights: (B,). Failed where its code raises, or gives no number."""

    def one(held: dict[str, Tensor]) -> Tensor:
        return scalar(measure(partial(target.call, held), batch), what)

    where = f"the task's {what}, run for several networks by torch.vmap,"
    return cast(Tensor, call_user(torch.vmap(one, randomness="different"), where, dict(weights)))


@torch.no_grad()
def _adam(
    weights: dict[str, Tensor],
    slopes: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    rates: Tensor,
    step: int,
) -> None:
    finite = torch.stack([g.flatten(1).isfinite().all(1) for g in slopes.values()]).all(0)  # (B,)
    for name, weight in weights.items():
        spread = (-1, *[1] * (weight.ndim - 1))
        slope = torch.where(finite.view(spread), slopes[name], 0.0)
        first[name].lerp_(slope, 1 - _BETAS[0])
        second[name].lerp_(slope * slope, 1 - _BETAS[1])
        mean, power = first[name] / (1 - _BETAS[0] ** step), second[name] / (1 - _BETAS[1] ** step)
        moved = weight - rates.view(spread) * mean / (power.sqrt() + _EPSILON)
        weights[name] = torch.where(finite.view(spread) & moved.isfinite(), moved, weight)
