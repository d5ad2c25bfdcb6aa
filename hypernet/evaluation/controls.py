"""Controls: a generator that does as well when it is asked for something else does not do what it is asked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import Sampling
from paramsmith.hypernet.model import WeightModel
from paramsmith.hypernet.protocols import Condition, Episode, Task
from paramsmith.hypernet.seeding import rng_of
from paramsmith.hypernet.training.tasks import drawn

from .generated import Generated
from .starts import Start, Weights

_DRAWS = 64  # in search of another condition of the same shapes


def controls_of(model: WeightModel, asked: Start, task: Task, seed: int) -> dict[str, Start]:
    """The controls that there are for a generator, by what is done; none for one that is asked for nothing.

    `asked` is its start, as it is judged; each control is that start with another condition. `asked nothing`: the one
    that training put in place of others now and then, where it did.
    """
    shapes = model.config["condition"]
    if not shapes:
        return {}
    found = {"asked wrong": wrong_condition(asked, task, seed)}
    if "classes" in shapes:
        found["classes rotated"] = rotated_condition(asked)
    nothing = Sampling(guidance=0.0)
    with suppress(InvalidInput):
        model.check_sampling(nothing)
        found["asked nothing"] = Generated(model, seed, nothing)
    return found


def wrong_condition(asked: Start, task: Task, seed: int) -> Start:
    """It is asked for another draw's condition of the same shapes. InvalidInput where the task has no other."""

    def start(episode: Episode, number: int) -> Weights:
        rng = rng_of(seed, 1, number)
        for _ in range(_DRAWS):
            other = drawn(task, rng, "test").condition
            if _differs(other, episode.condition):
                return asked(replace(episode, condition=other), number)
        raise InvalidInput("the task asks for the same every time", "draw conditions where the split is test")

    return start


def rotated_condition(asked: Start) -> Start:
    """It is asked for the same `classes` (k, n, F), each in the place of the next: what it makes has all wrong."""

    def start(episode: Episode, number: int) -> Weights:
        moved = {"classes": episode.condition["classes"].roll(1, 0)}
        return asked(replace(episode, condition=moved), number)

    return start


def _differs(a: Condition, b: Condition) -> bool:
    """Whether two conditions have the same shapes, and other values."""
    same = {name: tensor.shape for name, tensor in a.items()} == {name: tensor.shape for name, tensor in b.items()}
    return same and any(not torch.equal(a[name], b[name]) for name in a)
