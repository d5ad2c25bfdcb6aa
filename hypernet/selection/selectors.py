"""Selectors: of k samples the best, their mean, or layer by layer what helps.

Each is told a score and the data to select by (`roles.Shown`), and gives back the scores of all that it tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params

from .drawing import Draw
from .roles import Data, Score, Shown, Weights


@dataclass(frozen=True)
class Step:
    """One decision: the tensors it was about, the scores of the candidates, and which was kept; None: what was there.

    `first` is the number of the first candidate.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    kept: int | None
    first: int = 0


@dataclass(frozen=True)
class Selected:
    """What was selected, and by what. `steps` has one entry for each decision.

    `score` is that of `weights` on the selection data, which is no estimate of how good they are: they were chosen by
    it. `before`: that of the network a greedy search began with.
    """

    weights: dict[str, Tensor] = field(repr=False)
    selector: str
    k: int
    steps: tuple[Step, ...]
    score: float
    before: float | None = None

    @property
    def scores(self) -> tuple[float, ...]:
        """Those of all candidates, in the order they were drawn."""
        return tuple(score for step in self.steps for score in step.scores)

    @property
    def kept(self) -> int | None:
        """The number of the one sample that was kept; None where the result is of several, or none."""
        return self.steps[-1].kept if len(self.steps) == 1 else None

    def record(self, rows: int) -> dict[str, object]:
        """What provenance tells: selector, k, rank of what was kept, scores, and how many rows it was selected by."""
        told: dict[str, object] = {"selector": self.selector, "k": self.k, "rows": rows, "score": _told(self.score)}
        if self.kept is not None:
            told |= {"kept": self.kept, "rank": 1}
        if self.before is not None:
            told["before"] = _told(self.before)
        steps: list[dict[str, object]] = []
        for step in self.steps:
            said: dict[str, object] = {"first": step.first, "scores": [_told(score) for score in step.scores]}
            if self.before is not None:
                said |= {"tensors": list(step.names), "kept": step.kept}
            steps.append(said)
        return {**told, "steps": steps}


class BestOf(Params):
    """The best of k samples."""

    k: int = Field(8, ge=1, le=100_000, description="samples")

    def select(self, draw: Draw, shown: Shown, score: Score) -> Selected:
        """argmax_i score(sample i); the first of equals. Failed where no score is a number."""
        scored = guarded(score, shown)
        kept, best, found = _best(draw, range(self.k), scored)
        if best is None:
            raise _none_scored(self.k)
        step = Step(tuple(best), found, kept)
        return Selected(dict(best), "best_of", self.k, (step,), found[kept])


class MeanOf(Params):
    """The mean of k samples: of a linear head alone, or of networks that are known to be aligned.

    The mean of two networks whose hidden units are in another order is neither; a linear head has none.
    """

    k: int = Field(8, ge=1, le=100_000, description="samples")
    aligned: bool = Field(False, description="the generator's networks share the order of their hidden units")

    def check_target(self, spec: TargetSpec) -> None:
        """InvalidInput for a target of more than a linear head, unless `aligned` is said."""
        if not self.aligned and not is_linear_head(spec):
            fact = "the mean of samples is of a linear head, or of aligned networks, and the target has hidden layers"
            raise InvalidInput(
                fact, "take the best of them; or say --aligned (aligned=True), if their zoo shares its start"
            )

    def select(self, draw: Draw, shown: Shown, score: Score, spec: TargetSpec) -> Selected:
        """(1/k) sum_i sample i, summed in fp64 and rounded once."""
        self.check_target(spec)
        scored = guarded(score, shown)
        total: dict[str, Tensor] = {}
        found: list[float] = []
        types: dict[str, torch.dtype] = {}
        for number in range(self.k):
            weights = draw(number)
            found.append(scored(weights))
            for name, values in weights.items():
                types[name] = values.dtype
                total[name] = total[name] + values.double() if name in total else values.double()
        made = {name: (values / self.k).to(types[name]) for name, values in total.items()}
        return Selected(made, "mean_of", self.k, (Step(tuple(made), tuple(found), None),), scored(made))


class GreedyLayers(Params):
    """Layer by layer: the best of k samples of its tensors, or those it has.

    The result scores at least as well as the network it begins with on the data it is selected by, and may do so by
    fitting that data.
    """

    k: int = Field(8, ge=1, le=100_000, description="samples a layer")

    def select(
        self, draw: Draw, shown: Shown, score: Score, begin: Weights, order: Sequence[Sequence[str]]
    ) -> Selected:
        """For each layer of `order`, a group of tensors: replace it where the best of its samples is better.

        Layer l is offered samples l k to l k + k - 1. InvalidInput for tensors that the network does not have. Papers:
        Diffusion-Based Neural Network Weights Generation, arXiv:2402.18153; `spectrum.ranked` is its order.
        """
        scored = guarded(score, shown)
        _check_order(order, begin)
        current, best = dict(begin), scored(begin)
        before, steps = best, []
        for place, layer in enumerate(order):
            numbers, names = range(place * self.k, (place + 1) * self.k), tuple(layer)
            kept, part, found = _best(partial(draw, names=names), numbers, _over(current, scored))
            top = found[kept - numbers.start] if part is not None else -math.inf
            better = part is not None and not top <= best
            if better and part is not None:
                current |= part
                best = top
            steps.append(Step(names, found, kept if better else None, numbers.start))
        if math.isnan(best):
            raise _none_scored(1 + self.k * len(steps))
        return Selected(current, "greedy_layers", self.k, tuple(steps), best, before)


class Bootstrap(Params):
    """SANE's: the best of k samples become anchors that the next k are drawn around, and so on."""

    k: int = Field(50, ge=2, le=100_000, description="samples a round")
    keep: int = Field(10, ge=2, le=100_000, description="anchors of the next round, and of the result the best")
    rounds: int = Field(2, ge=1, le=1000, description="rounds, the first of the generator itself")

    def select(self, draw: Draw, shown: Shown, score: Score, around: Callable[[list[Weights], int], Draw]) -> Selected:
        """The best of all rounds; `around(anchors, round)` draws near anchors, as `drawing.around`.

        Paper: Towards Scalable and Versatile Weight Space Learning (SANE), arXiv:2406.09997.
        """
        if self.keep > self.k:
            raise InvalidInput(f"{self.keep} of {self.k} samples cannot be kept", "keep fewer, or draw more")
        scored = guarded(score, shown)
        steps: list[Step] = []
        held: list[tuple[float, Weights]] = []
        for number in range(self.rounds):
            found: list[float] = []
            names: tuple[str, ...] = ()
            for candidate in range(self.k):
                weights = draw(candidate)
                found.append(scored(weights))
                names = tuple(weights)
                if not math.isnan(found[-1]):
                    held.append((found[-1], weights))
                    held = sorted(held, key=lambda pair: -pair[0])[: self.keep]  # stable: the first of equals
            steps.append(Step(names, tuple(found), None))
            if number + 1 < self.rounds:
                draw = around([weights for _, weights in held], number + 1)
        if not held:
            raise _none_scored(self.k * self.rounds)
        return Selected(dict(held[0][1]), "bootstrap", self.k, tuple(steps), held[0][0])


def is_linear_head(spec: TargetSpec) -> bool:
    """Whether all tensors of a target have a row or number a class: one linear layer, and nothing hidden."""
    return all(slot.class_axis is not None for slot in spec.slots)


def guarded(score: Score, shown: Shown) -> Callable[[Weights], float]:
    """The score on what may be selected by. TypeError for data with all of its roles."""
    if isinstance(shown, Data) or not isinstance(shown, Shown):
        raise TypeError("a selector is given data.shown(), which what is reported on is not in")
    return lambda weights: float(score(weights, shown.selection))


def _best(
    draw: Callable[[int], Weights], numbers: Sequence[int], scored: Callable[[Weights], float]
) -> tuple[int, Weights | None, tuple[float, ...]]:
    """The number of the best, its tensors, and all scores; only the best so far is held."""
    kept, best, found = numbers[0], None, []
    top = -math.inf
    for number in numbers:
        weights = draw(number)
        found.append(scored(weights))
        if not math.isnan(found[-1]) and (best is None or found[-1] > top):
            kept, best, top = number, weights, found[-1]
    return kept, best, tuple(found)


def _over(held: Weights, scored: Callable[[Weights], float]) -> Callable[[Weights], float]:
    """The score of a network with some of its tensors replaced."""
    return lambda weights: scored({**held, **weights})


def _check_order(order: Sequence[Sequence[str]], begin: Weights) -> None:
    if not order or not all(order):
        raise InvalidInput("there are no layers to generate", "name at least one tensor of each")
    strange = next((name for layer in order for name in layer if name not in begin), None)
    if strange is not None:
        raise InvalidInput(f"{strange}: is no tensor of the network that is begun with", "name those that it has")


def _none_scored(count: int) -> Failed:
    return Failed(f"none of {count:,} scores is a number", "look at what the score does with the samples")


def _told(score: float) -> float | None:
    """A number that JSON knows."""
    return score if math.isfinite(score) else None
