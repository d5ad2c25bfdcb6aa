"""What a codec loses: networks before and after they are encoded and decoded, by their numbers and by their score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from paramsmith.errors import Failed
from paramsmith.hypernet.protocols import Episode, Task
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.training.tasks import scalar
from paramsmith.userfile import call_user


class Coding(Protocol):
    """What encodes and decodes weights (B, *shape) by slot: a `Sampler`."""

    def encoded(self, tensors: Mapping[str, Tensor], spec: TargetSpec) -> Tensor:
        """Latents (B, L, D)."""
        ...

    def restored(self, latent: Tensor, spec: TargetSpec) -> dict[str, Tensor]:
        """Weights."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """What came of it, over so many networks w, which were w' afterwards.

    `error`: the mean of |w - w'| / |w|; `worst`: the largest. `unexplained`: |w - w'|² / |w - mean|², both summed over
    all networks, with the mean of those of the same architecture: what the codec loses of that in which they differ;
    1 is what their mean alone would lose. `before`, `after`: mean scores, None where there is no task. `lost`: how
    much higher the first is.
    """

    networks: int
    error: float
    worst: float
    unexplained: float
    before: float | None = None
    after: float | None = None

    @property
    def lost(self) -> float | None:
        """before - after."""
        return None if self.before is None or self.after is None else self.before - self.after

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "lost": self.lost}


@torch.no_grad()
def reconstruction(
    model: Coding,
    networks: Iterable[tuple[Mapping[str, Tensor], TargetSpec]],
    task: Task | None = None,
    episodes: Iterable[Episode] = (),
) -> Reconstruction:
    """Encode and decode networks, which come as batches (B, *shape) by slot, and compare.

    With a task, `episodes` has one a network, in order, on whose query it is scored before and after; the networks
    without one are not scored. They should not be those that the codec was made from, which it knows better than
    others. A score of accuracy is lost in shares: 0.02 are two points. Failed where the task raises, and where there
    is no network.
    """
    known, errors, left, spread = iter(episodes), [], 0.0, _Spread()
    scores: list[tuple[float, float]] = []
    for tensors, spec in networks:
        restored = model.restored(model.encoded(tensors, spec), spec)
        names = [slot.name for slot in spec.slots]
        away = _squares({name: tensors[name] - restored[name] for name in names})  # (B,)
        whole = _squares({name: tensors[name] for name in names})
        errors += torch.where(away == 0, 0.0, away / whole).sqrt().tolist()
        left += float(away.sum())
        spread.see(tensors, spec)
        if task is not None:
            scores += _scored(task, known, tensors, restored)
    if not errors:
        raise Failed("there are no networks to encode and decode", "put some into the zoo")
    before, after = (sum(column) / len(scores) for column in zip(*scores, strict=True)) if scores else (None, None)
    unexplained = left / spread.total if spread.total > 0 else math.inf if left > 0 else 0.0
    return Reconstruction(len(errors), sum(errors) / len(errors), max(errors), unexplained, before, after)


def check_reconstruction(report: Reconstruction, margin: float) -> None:
    """Failed where the codec loses more of the mean score than `margin`, or gives numbers that are not finite.

    Whatever a prior draws goes through the decoder: it can hardly be better than what comes out of this.
    """
    if not math.isfinite(report.error):
        raise Failed(f"the codec gives numbers that are not finite, of {report.networks:,} networks", "train it slower")
    if report.lost is None or report.lost <= margin:
        return
    told = f"{report.before:.4g} before, {report.after:.4g} after, {report.networks:,} networks"
    fact = f"the codec loses {report.lost:.3g} of the score ({told}); at most {margin:g} may be lost"
    raise Failed(
        f"{fact}; the weights are off by {report.error:.1%}", "give it more: steps, rank, levels, codes, latent"
    )


class _Spread:
    """The squared distances of networks from the mean of their architecture, in fp64."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, dict[str, Tensor], float]] = {}

    def see(self, tensors: Mapping[str, Tensor], spec: TargetSpec) -> None:
        """Count a batch in: Chan's merge of means and sums of squares."""
        batch = {slot.name: tensors[slot.name].double() for slot in spec.slots}
        n = len(next(iter(batch.values())))
        means = {name: values.mean(0) for name, values in batch.items()}
        squares = float(_squares({name: values - means[name] for name, values in batch.items()}).sum())
        if spec.hash in self._held:
            m, others, before = self._held[spec.hash]
            apart = {name: (means[name] - others[name])[None] for name in means}
            squares += before + float(_squares(apart)) * m * n / (m + n)
            means = {name: (m * others[name] + n * means[name]) / (m + n) for name in means}
            n += m
        self._held[spec.hash] = n, means, squares

    @property
    def total(self) -> float:
        """Over all architectures."""
        return sum(squares for _, _, squares in self._held.values())


def _squares(tensors: Mapping[str, Tensor]) -> Tensor:
    """The squared norm of each network, (B,), in fp64."""
    return torch.stack([values.double().flatten(1).square().sum(1) for values in tensors.values()]).sum(0)


def _scored(
    task: Task, episodes: Iterator[Episode], tensors: Mapping[str, Tensor], restored: Mapping[str, Tensor]
) -> Iterator[tuple[float, float]]:
    """Scores before and after of those networks of a batch that have an episode."""
    for i, episode in zip(range(len(next(iter(tensors.values())))), episodes, strict=False):
        yield _score(task, episode, tensors, i), _score(task, episode, restored, i)


def _score(task: Task, episode: Episode, tensors: Mapping[str, Tensor], i: int) -> float:
    weights = {slot.name: tensors[slot.name][i] for slot in episode.target.spec.slots}
    found = call_user(task.score, "the task's score", partial(episode.target.call, weights), episode.query)
    return float(scalar(found, "score"))
