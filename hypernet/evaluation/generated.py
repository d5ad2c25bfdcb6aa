"""Starts that a generator draws: one sample, the best of several, their mean."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import PLAIN, Sampling
from paramsmith.hypernet.model import WeightModel
from paramsmith.hypernet.protocols import Episode, Task
from paramsmith.hypernet.selection.drawing import Draw, draws
from paramsmith.hypernet.selection.roles import Shown, score_of
from paramsmith.hypernet.selection.selectors import BestOf, MeanOf, is_linear_head

from .starts import Start, Weights


class Generated:
    """The start whose number i is sample i of a model for the episode's target and condition.

    They are those that `Generator.sample` gives for `seed`. Several are drawn at once, and kept until another episode
    is asked for.
    """

    def __init__(self, model: WeightModel, seed: int = 0, how: Sampling = PLAIN) -> None:
        self.model, self.seed, self.how = model, seed, how
        self._known: tuple[Episode, Draw] | None = None

    def __call__(self, episode: Episode, number: int) -> Weights:
        """Its weights by slot."""
        if self._known is None or self._known[0] is not episode:
            condition = {name: tensor[None] for name, tensor in episode.condition.items()}
            spec = self.model.target(episode.target.spec)
            self._known = episode, draws(self.model, condition, spec, self.seed, self.how)
        return self._known[1](number)


def best_of(start: Start, task: Task, k: int) -> Start:
    """Of k draws, the one that does best on the episode's support; what it is reported on has no say."""

    def chosen(episode: Episode, number: int) -> Weights:
        shown = Shown(episode.condition, episode.support)
        score, draw = score_of(task, episode.target), _Candidates(start, episode, number * k)
        return BestOf(k=k).select(draw, shown, score).weights

    return chosen


def oracle_of(start: Start, task: Task, k: int) -> Start:
    """Of k draws, the one that does best on what is reported on: the bound of every selector, and no start to have."""

    def chosen(episode: Episode, number: int) -> Weights:
        score, draw = score_of(task, episode.target), _Candidates(start, episode, number * k)
        return max((draw(i) for i in range(k)), key=lambda weights: score(weights, episode.query))

    return chosen


def averaged(start: Start, task: Task, k: int) -> Start:
    """The mean of k draws: InvalidInput for a target of more than a linear head, whose hidden units have an order."""

    def chosen(episode: Episode, number: int) -> Weights:
        if not is_linear_head(episode.target.spec):
            raise InvalidInput("the mean of samples is of linear heads, and the target has hidden layers", "choose one")
        shown, score = Shown(episode.condition, episode.support), score_of(task, episode.target)
        draw = _Candidates(start, episode, number * k)
        return MeanOf(k=k, aligned=False).select(draw, shown, score, episode.target.spec).weights

    return chosen


@dataclass(frozen=True)
class _Candidates:
    """The draws of a start for one episode, as selectors want them, from number `first` on."""

    start: Start
    episode: Episode
    first: int

    def __call__(self, number: int, names: Collection[str] | None = None) -> Weights:
        """All tensors, or those that are named."""
        weights = self.start(self.episode, self.first + number)
        return weights if names is None else {name: weights[name] for name in names}
