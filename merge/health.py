"""What the numbers themselves say: NaN, infinities, dead tensors and overflow, seen while they are merged."""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paramsmith.blocks import Block
from paramsmith.errors import printable
from paramsmith.stream import Scratch

from .job import Job, MergeTask
from .passes import Runner

# Sums of a few values this large leave float32.
LARGE = 1e37


class Health:
    """The largest magnitude of every source of every tensor, and of every result; NaN wins."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._peaks: dict[str, NDArray[np.float64]] = {}
        self._lock = threading.Lock()

    def see(self, block: Block[MergeTask], runner: Runner, scratch: Scratch, peaks: Tensor, top: Tensor) -> None:
        """Take in one block: `peaks` (sources,) and `top` (1,) are its largest magnitudes."""
        seen = torch.cat([peaks, top]).cpu().double().numpy()
        if len(block.spans) == 1:
            self._add(block.task.spec.name, seen)
            return
        raw = scratch.take("raw", (len(block.task.sources), block.count), runner.raw_dtype(block.task), host=True)
        starts = [span.at for span in block.spans]
        each = np.maximum.reduceat(raw.to(runner.wide).abs().numpy(), starts, axis=1)  # (sources, spans)
        for number, span in enumerate(block.spans):
            # the result's own peak is known for the block only: it counts where nothing else explains it
            self._add(span.task.spec.name, np.append(each[:, number], seen[-1] if np.isfinite(seen[:-1]).all() else 0))

    def _add(self, name: str, seen: NDArray[np.float64]) -> None:
        with self._lock:
            before = self._peaks.get(name)
            self._peaks[name] = seen if before is None else np.maximum(before, seen)

    def warnings(self) -> list[str]:
        """One sentence for every tensor something is wrong with, in the order of the result."""
        labels = [m.label for m in ([self._job.base] if self._job.deltas and self._job.base else [])]
        labels += [m.label for m in self._job.models]
        told = []
        for task in self._job.tasks:
            peaks = self._peaks.get(task.spec.name)
            if peaks is not None:
                told += _about(printable(task.spec.name), labels, peaks)
        return told


def _about(name: str, labels: list[str], peaks: NDArray[np.float64]) -> list[str]:
    told = []
    zero = [label for label, peak in zip(labels, peaks[:-1], strict=False) if peak == 0]
    for label, peak in zip(labels, peaks[:-1], strict=False):
        if math.isnan(peak):
            told.append(f"{label}: {name} holds NaN")
        elif math.isinf(peak):
            told.append(f"{label}: {name} holds an infinity")
        elif peak > LARGE:
            told.append(f"{label}: {name} holds {peak:.1e}, which sums may carry over the edge of float32")
    if zero and len(zero) < len(peaks) - 1:
        told += [f"{label}: {name} is all zeros" for label in zero]
    if not np.isfinite(peaks[-1]) and np.isfinite(peaks[:-1]).all():
        told.append(f"the result: {name} overflows its dtype")
    return told
