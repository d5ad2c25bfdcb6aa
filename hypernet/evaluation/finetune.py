"""Training a target on from given weights: many starts and learning rates side by side, as one batch of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.protocols import Batch, Classifying, Run, Target, Task
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
class EpisodeData:
    """Of one episode, what is trained on, what chooses among runs, and what is reported, which alone tables show."""

    train: Batch
    validation: Batch
    report: Batch


def finetune(
    task: Task, target: Target, starts: Mapping[str, Tensor], rates: Tensor, data: EpisodeData, schedule: Schedule
) -> Curves:
    """Adam from `starts` (B, *shape) at learning rates (B,), every run seeing the same rows in the same order.

    A run that leaves the finite numbers stays where it was last finite, and so scores what it scored there.
    """
    return finetune_together(task, target, [starts], rates, [data], [schedule])[0]


def finetune_together(
    task: Task,
    target: Target,
    starts: Sequence[Mapping[str, Tensor]],
    rates: Tensor,
    data: Sequence[EpisodeData],
    schedules: Sequence[Schedule],
) -> list[Curves]:
    """`finetune` of G groups of starts side by side: each has data, and an order of rows, of its own.

    Marks, batch size and the shapes of what is trained on are the same for all.
    """
    count, marks = len(rates), schedules[0].marks
    weights = {name: torch.cat([start[name] for start in starts]).detach() for name in starts[0]}  # (G B, *shape)
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    rngs = [torch.Generator().manual_seed(schedule.seed) for schedule in schedules]
    every, seen = rates.repeat(len(starts)), []
    for step in range(max(marks) + 1):
        if step in marks:
            seen.append([_judged(task, target, _group(weights, g, count), held) for g, held in enumerate(data)])
        if step == max(marks):
            break
        chosen = [drawn_rows(held.train, schedules[0].batch_size, rng) for held, rng in zip(data, rngs, strict=True)]
        slopes = _gradients(task, target, weights, chosen)
        _adam(weights, slopes, first, second, every, step + 1)
    made = []
    for g in range(len(starts)):
        validation, report = (torch.stack([at[g][side] for at in seen], 1) for side in (0, 1))
        made.append(Curves(validation, report, _group(weights, g, count)))
    return made


def _group(weights: Mapping[str, Tensor], g: int, count: int) -> dict[str, Tensor]:
    """(B, *shape) of one group."""
    return {name: w[g * count : (g + 1) * count] for name, w in weights.items()}


def _judged(task: Task, target: Target, weights: Mapping[str, Tensor], data: EpisodeData) -> tuple[Tensor, Tensor]:
    return scores(task, target, weights, data.validation), scores(task, target, weights, data.report)


@torch.no_grad()
def scores(task: Task, target: Target, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The score of each of (B, *shape) weights on one batch: (B,)."""
    return _measured(task.score, "score", target, weights, batch)


@torch.no_grad()
def logits(task: Classifying, target: Target, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """What each of (B, *shape) weights says of each example: (B, n, k). Failed where the task's code raises."""

    def one(held: dict[str, Tensor]) -> Tensor:
        return task.logits(partial(target.call, held), batch)

    return cast(Tensor, call_user(torch.vmap(one, randomness="different"), "the task's logits", dict(weights)))


def drawn_rows(batch: Batch, count: int | None, rng: torch.Generator) -> Batch:
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


def _gradients(
    task: Task, target: Target, weights: Mapping[str, Tensor], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    leaves = {name: w.detach().requires_grad_(True) for name, w in weights.items()}
    own = batches[0]
    if len(batches) > 1:  # a batch for each run
        several = len(next(iter(leaves.values()))) // len(batches)
        own = {name: torch.stack([b[name] for b in batches]).repeat_interleave(several, 0) for name in batches[0]}
    losses = _measured(task.loss, "loss", target, leaves, own, apart=len(batches) > 1)  # (B,)
    if not losses.requires_grad:
        raise Failed("the task's loss does not depend on the weights", "make it of what `run` gives, with gradients on")
    slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(leaves.items(), slopes, strict=True)}


def _measured(
    measure: Callable[[Run, Batch], Tensor],
    what: str,
    target: Target,
    weights: Mapping[str, Tensor],
    batch: Batch,
    apart: bool = False,
) -> Tensor:
    """What the task says of each of (B, *shape) weights: (B,). Failed where its code raises, or gives no number.

    `apart`: the batch has a first axis of runs too.
    """

    def one(held: dict[str, Tensor], seen: dict[str, Tensor]) -> Tensor:
        return scalar(measure(partial(target.call, held), seen), what)

    where = f"the task's {what}, run for several networks by torch.vmap,"
    mapped = torch.vmap(one, in_dims=(0, 0 if apart else None), randomness="different")
    return cast(Tensor, call_user(mapped, where, dict(weights), dict(batch)))


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
