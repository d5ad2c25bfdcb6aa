"""What the numbers themselves say: NaN, infinities, dead tensors and overflow, seen while they are merged.

A kernel gives one number a block, the largest sum of magnitudes: finite and small means all is well. Only where it is
not, or a tensor begins with zeros, are the sources looked at one by one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paramsmith.blocks import Block, Span
from paramsmith.errors import printable
from paramsmith.stream import Scratch

from .job import Job, MergeTask, Part

# Sums of a few values this large leave float32.
LARGE = 1e37
_KEY = "health of "  # and the tensor's name: what the journal knows it by
# Elements at a tensor's beginning that are enough to see it is not dead.
HEAD = 64
_CHUNK = 1 << 16

Note = Callable[[str, object], None]


class Health:
    """Collects what is wrong, by tensor; filled by many workers. `remember` and `recall` keep it over interruptions."""

    def __init__(self, job: Job, wide: torch.dtype, remember: Note, recall: Callable[[str], object]) -> None:
        self._job, self._wide, self._remember = job, wide, remember
        self._labels = [m.label for m in ([job.base] if job.deltas and job.base else [])]
        self._labels += [m.label for m in job.models]
        self._found: dict[str, set[tuple[int, str]]] = {}
        for task in job.tasks:
            kept = recall(_KEY + task.spec.name)
            if isinstance(kept, list):
                self._found[task.spec.name] = {(number, fault) for number, fault in kept}
        self._dull: dict[str, MergeTask] = {}
        self._lock = threading.Lock()

    def see(self, block: Block[MergeTask], out: Tensor, top: float, scratch: Scratch) -> None:
        """Take in one merged block: `top` is its largest sum of magnitudes; its sources are still in the scratch."""
        raw = scratch.last("raw")[: len(self._labels)]  # statistics may be zeros
        starts = [span for span in block.spans if span.start == 0]
        if starts:
            self._look_for_zeros(starts, raw)
        if not top <= LARGE:
            for span in block.spans:
                self._look_closely(span, raw, out)

    def skip(self, block: Block[MergeTask]) -> None:
        """A block that an earlier run merged: its faults are known, but for zeros."""
        with self._lock:
            self._dull.update((span.task.spec.name, span.task) for span in block.spans if span.start == 0)

    def _look_for_zeros(self, starts: Sequence[Span[MergeTask]], raw: Tensor) -> None:
        if len(starts) == 1:
            dull = starts if not bool(raw[:, starts[0].at : starts[0].at + HEAD].any(1).all()) else []
        else:
            places = torch.tensor([span.at for span in starts], device=raw.device)
            alive = (raw[:, places] != 0).all(0).tolist()
            dull = [span for span, good in zip(starts, alive, strict=True) if not good]
        with self._lock:
            self._dull.update((span.task.spec.name, span.task) for span in dull)

    def _look_closely(self, span: Span[MergeTask], raw: Tensor, out: Tensor) -> None:
        peaks = raw[:, span.at : span.at + span.count].to(self._wide).abs().amax(1).tolist()
        found = {(number, fault) for number, peak in enumerate(peaks) if (fault := _fault(peak))}
        if not found and not bool(out[span.at : span.at + span.count].isfinite().all()):
            found = {(len(self._labels), "overflows its dtype")}
        if found:
            with self._lock:
                known = self._found.setdefault(span.task.spec.name, set())
                if not found <= known:
                    known |= found
                    self._remember(_KEY + span.task.spec.name, sorted(known))

    def warnings(self) -> list[str]:
        """One sentence for every fault, in the order of the result."""
        labels, told = [*self._labels, "the result"], []
        for task in self._job.tasks:
            name = task.spec.name
            faults = sorted(self._found.get(name, ()))
            told += [f"{printable(labels[number])}: {printable(name)} {fault}" for number, fault in faults]
            if name in self._dull:
                sources = task.sources[: len(self._labels)]
                dead = [number for number, source in enumerate(sources) if _all_zero(source, task.count)]
                if len(dead) < len(sources):
                    told += [f"{printable(labels[number])}: {printable(name)} is all zeros" for number in dead]
        return told


def _fault(peak: float) -> str:
    if math.isnan(peak):
        return "holds NaN"
    if math.isinf(peak):
        return "holds an infinity"
    return f"holds {peak:.1e}, which sums may carry over the edge of float32" if peak > LARGE else ""


def _all_zero(source: Part, count: int) -> bool:
    """Whether a source's bytes are zeros, read until one is not; -0.0 counts as something."""
    nbytes = count * source.dtype.itemsize
    for start in range(0, nbytes, _CHUNK):
        held = bytearray(min(_CHUNK, nbytes - start))
        source.read(start, memoryview(held))
        if held.count(0) != len(held):
            return False
    return True
