"""A few steps of gradient descent as a function of the weights they start from, and the episodes that need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Batch, Condition, Episode, Run, Target, Task

Weights = dict[str, Tensor]
Losses = Callable[[Mapping[str, Tensor]], Tensor]  # weights -> the loss, a scalar
R = TypeVar("R", Tensor, Weights)


def adapt(
    run_loss: Losses,
    weights: Mapping[str, Tensor],
    lr: float | Mapping[str, Tensor],
    steps: int,
    first_order: bool = False,
) -> Weights:
    """Weights after some steps of gradient descent, differentiable in the weights they start from.

    w <- w - lr * dL(w)/dw, `steps` times. `lr` is one number, or one by tensor, of the tensor's shape or one that
    broadcasts to it. With `first_order` each step is taken as a constant: the result's derivative by the start is the
    identity. Runs under `torch.vmap`: one adaptation a task.

    >>> def squared(weights):
    ...     return weights["w"].square().sum() / 2
    >>> adapt(squared, {"w": torch.tensor([4.0, 8.0])}, lr=0.5, steps=2)
    {'w': tensor([1., 2.])}

    Finn et al., 2017, arXiv:1703.03400.
    """
    current = dict(weights)
    for _ in range(steps):
        seen = {name: value.detach() for name, value in current.items()} if first_order else current
        slopes = torch.func.grad(run_loss)(seen)
        if first_order:
            slopes = {name: slope.detach() for name, slope in slopes.items()}
        current = {name: value - _rate(lr, name) * slopes[name] for name, value in current.items()}
    return current


@dataclass(frozen=True)
class Gathered:
    """Episodes of one target whose batches have the same shapes, stacked along a new first axis of B episodes."""

    target: Target
    count: int
    condition: Condition  # (B, ...)
    support: Batch  # (B, ...)
    query: Batch  # (B, ...)

    def to(self, device: torch.device) -> Gathered:
        """The same, its tensors on a device."""
        condition, support, query = (
            {name: value.to(device) for name, value in part.items()}
            for part in (self.condition, self.support, self.query)
        )
        return replace(self, condition=condition, support=support, query=query)


def gather(task: Task, rng: torch.Generator, count: int, split: str = "train") -> list[Gathered]:
    """So many episodes, those that can run side by side together. Their order is that of the draws."""
    groups: dict[object, list[Episode]] = {}
    for _ in range(count):
        episode = task.episode(rng, split)
        parts = (episode.condition, episode.support, episode.query)
        shapes = tuple(tuple((name, part[name].shape) for name in sorted(part)) for part in parts)
        groups.setdefault((id(episode.target), shapes), []).append(episode)
    return [
        Gathered(
            group[0].target,
            len(group),
            _stacked([episode.condition for episode in group]),
            _stacked([episode.support for episode in group]),
            _stacked([episode.query for episode in group]),
        )
        for group in groups.values()
    ]


def held_out(gathered: Gathered, tail: int) -> tuple[Batch, Batch]:
    """What to adapt on, and what to judge by: support and query.

    With a tail, the support without its last so many examples, and those. Without support, the query is adapted on.
    """
    support = gathered.support or gathered.query
    if not tail:
        return support, gathered.query
    short = next((name for name, value in support.items() if value.dim() < 2 or value.shape[1] <= tail), None)
    if short is not None:
        fact = f"an episode's support has no more than {tail} examples ({printable(short)}), and {tail} are held out"
        raise InvalidInput(fact, "have the task give more, or lower tail")
    kept = {name: value[:, :-tail] for name, value in support.items()}
    return kept, {name: value[:, -tail:] for name, value in support.items()}


def side_by_side(
    each: Callable[[Mapping[str, Tensor], Batch, Batch], R], weights: Mapping[str, Tensor], support: Batch, query: Batch
) -> R:
    """`each(weights, support, query)` for B episodes at once; weights (1, *shape) are shared by them all."""
    shared = all(value.shape[0] == 1 for value in weights.values())
    given = {name: value[0] for name, value in weights.items()} if shared else dict(weights)
    mapped = torch.vmap(each, in_dims=(None if shared else 0, 0, 0), randomness="different")
    found: R = mapped(given, dict(support), dict(query))
    return found


def loss_of(measure: Callable[[Run, Batch], Tensor], target: Target, batch: Batch) -> Losses:
    """A task's loss on a batch, as a function of the target's weights."""
    return lambda weights: measure(partial(target.call, weights), batch)


def _rate(lr: float | Mapping[str, Tensor], name: str) -> float | Tensor:
    if not isinstance(lr, Mapping):
        return lr
    if name not in lr:
        raise InvalidInput(f"there is no step size for {printable(name)}", "give one a tensor, or one number for all")
    return lr[name]


def _stacked(batches: list[Batch] | list[Condition]) -> Weights:
    return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
