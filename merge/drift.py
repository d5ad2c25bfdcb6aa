"""How far the models went from their base, and how much in one direction: layer by layer, in one pass over them all.

Every block gives the products of all pairs in float64; blocks of a fixed size are added up in their order, so that the
numbers do not depend on the threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from paramsmith.blocks import Block, cut
from paramsmith.checkpoint import Checkpoint
from paramsmith.device import pick_threads
from paramsmith.model_config import layer_index
from paramsmith.progress import Progress
from paramsmith.stream import Scratch, read_block, run_workers

from .job import Part, part

OTHER = "other"
_ROOM = 1 << 20  # elements a worker holds in float64


@dataclass(frozen=True)
class Layer:
    """Sums over the tensors of one layer: squares of the base, and products of all pairs of task vectors."""

    name: str
    base: float
    products: NDArray[np.float64] = field(repr=False)  # (models, models)

    def norm(self, model: int) -> float | None:
        """||model - base|| / ||base||; None where the base is zero, or there is nothing to tell."""
        return math.sqrt(max(float(self.products[model, model]), 0.0) / self.base) if self.base > 0 else None

    def cosine(self, one: int, other: int) -> float | None:
        """That of the angle between two task vectors; None where one is zero."""
        norms = math.sqrt(float(self.products[one, one])) * math.sqrt(float(self.products[other, other]))
        return max(-1.0, min(1.0, float(self.products[one, other]) / norms)) if norms > 0 else None


@dataclass(frozen=True)
class Drift:
    """Layers in their order, what belongs to none of them last; `whole` is their sum.

    `left_out`: tensors that cannot be subtracted, as not every model has them so. `not_finite`: entries not counted.
    """

    layers: tuple[Layer, ...]
    whole: Layer
    left_out: int
    not_finite: int


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor of the base and of every model."""

    name: str
    count: int
    sources: tuple[Part, ...]


def measure_drift(
    base: Checkpoint, models: Sequence[Checkpoint], threads: int | None = None, progress: Progress | None = None
) -> Drift:
    """Norms and cosines of the models' differences from the base, over the floating-point tensors they all have."""
    tensors = _shared(base, models)
    sums = _Sums(tensors, len(models), progress)
    size = max(1 << 12, _ROOM // (1 + len(models)))
    run_workers(cut(tensors, size), sums.add, pick_threads(threads), torch.device("cpu"))
    groups: dict[int | None, NDArray[np.float64]] = {}
    for tensor in tensors:
        index = layer_index(tensor.name)
        groups[index] = groups.get(index, 0) + sums.totals.pop(tensor)
    order = sorted(groups, key=lambda index: (index is None, index))
    layers = tuple(_layer(OTHER if index is None else str(index), groups[index]) for index in order)
    whole = sum((groups[index] for index in order), np.zeros((1 + len(models),) * 2))
    floats = sum(info.dtype.kind == "float" and info.count > 0 for info in base.tensors.values())
    return Drift(layers, _layer("all", whole), floats - len(tensors), sums.not_finite)


class _Sums:
    """Adds up blocks that come in any order: in their own order, tensor by tensor."""

    def __init__(self, tensors: Sequence[_Tensor], models: int, progress: Progress | None) -> None:
        self.totals: dict[_Tensor, NDArray[np.float64]] = {t: np.zeros((1 + models,) * 2) for t in tensors}
        self.not_finite = 0
        self._waiting: dict[_Tensor, dict[int, tuple[int, NDArray[np.float64]]]] = {t: {} for t in tensors}
        self._next = dict.fromkeys(tensors, 0)
        self._lock = threading.Lock()
        self._progress, self._done = progress, 0
        self._total = sum(t.count * p.dtype.itemsize for t in tensors for p in t.sources)

    def add(self, block: Block[_Tensor], scratch: Scratch) -> None:
        """Take in one block."""
        found, bad = _products(block, scratch)
        tensor, start = block.task, block.spans[0].start
        with self._lock:
            self.not_finite += bad
            waiting = self._waiting[tensor]
            waiting[start] = (block.count, found)
            while (ready := waiting.pop(self._next[tensor], None)) is not None:
                self._next[tensor] += ready[0]
                self.totals[tensor] += ready[1]
            self._done += sum(p.dtype.itemsize for p in tensor.sources) * block.count
            if self._progress is not None:
                self._progress(self._done, self._total)


def _products(block: Block[_Tensor], scratch: Scratch) -> tuple[NDArray[np.float64], int]:
    """Products of all pairs of rows, the base and then the task vectors; and how many entries were no numbers."""
    raw = read_block(block, scratch, torch.float64)  # (1 + models, n)
    wide = scratch.take("wide", tuple(raw.shape), torch.float64)
    wide.copy_(raw)
    wide[1:] -= wide[0]
    found, bad = wide @ wide.T, 0  # (1 + models, 1 + models)
    if not bool(found.isfinite().all()):
        strange = ~wide.isfinite().all(0)  # (n)
        bad = int(strange.sum())
        wide[:, strange] = 0
        found = wide @ wide.T
    return found.numpy().copy(), bad


def _shared(base: Checkpoint, models: Sequence[Checkpoint]) -> list[_Tensor]:
    found = []
    for name, info in base.tensors.items():
        infos = [model.info(name) for model in models]
        alike = all(i is not None and i.shape == info.shape and i.dtype.kind == "float" for i in infos)
        if info.dtype.kind == "float" and info.count and alike:
            sources = [part(base, name, info)]
            sources += [part(m, name, i) for m, i in zip(models, infos, strict=True) if i is not None]
            found.append(_Tensor(name, info.count, tuple(sources)))
    return found


def _layer(name: str, products: NDArray[np.float64]) -> Layer:
    return Layer(name, float(products[0, 0]), products[1:, 1:])
