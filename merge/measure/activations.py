"""Sums over what weights multiply: hooks take in the inputs of linear layers and convolutions as a model runs."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.device import parse_bytes
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.merge.task import Batch, Task
from paramsmith.statistics import About, weights_digest
from paramsmith.userfile import call_user

from .inputs import as_wide, first_tensor, is_convolution, patches, width
from .passes import Data, Progress, Seen, measure
from .subject import Report, at_rest, targets
from .weights import Weights, find_weights

# Bytes of a convolution's patches that are made at once, unless one example's are more.
_PIECE = 1 << 25


@dataclass(frozen=True)
class Sums:
    """What is summed for every weight: tensors by the ending of their name, from inputs (groups, positions, d)."""

    of: Callable[[Tensor], dict[str, Tensor]]
    result: Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]  # of the sums and how many positions there were
    endings: tuple[str, ...]  # of the results
    bytes_of: Callable[[int, int], int]  # that the sums take, of (groups, d)


@dataclass(frozen=True)
class Asked:
    """What may be said of such a measurement."""

    limit: int | None = None
    seed: int = 0
    memory: int | str | None = None
    include: str | None = None
    device: str | None = None
    force: bool = False
    progress: Progress | None = None


def measure_inputs(
    task: Task, checkpoint: Checkpoint, output: Path, kind: Literal["gram", "moments"], sums: Sums, asked: Asked
) -> Report:
    """Write a statistics file of the inputs of all weights; see measure_gram."""
    began = time.monotonic()
    if asked.limit is not None and asked.limit < 1:
        raise InvalidInput(f"limit is {asked.limit}", "give 1 or more")
    parameters = targets(task, checkpoint, asked.include)
    memory = None if asked.memory is None else parse_bytes(asked.memory)
    digest = weights_digest(checkpoint)
    key = {kind: "mean", "limit": asked.limit, "memory": memory, "seed": asked.seed, "of": digest}
    with at_rest(task.model, asked.device, {}) as here:
        data = Data(task, asked.limit, here)
        weights = find_weights(task, parameters, data.first())
        groups = weights.passes(sums.bytes_of, memory)

        def about(seen: Seen) -> Mapping[str, str]:
            about = About(
                kind=kind,
                estimator="mean",
                examples=seen.examples,
                seed=asked.seed,
                model=digest,
                data=seen.data,
                transposed=weights.transposed() if kind == "gram" else (),
            )
            same = {a + ending: k + ending for a, k in weights.same.items() for ending in sums.endings}
            return {**same, **about.metadata()}

        collector = Activations(task, weights, sums)
        examples = measure(output, key, data, groups, collector, about, force=asked.force, progress=asked.progress)
    return Report(output, kind, examples, time.monotonic() - began, weights.warnings)


class Enough(BaseException):
    """The forward pass has come as far as is needed."""


class Activations:
    """A Collector of the inputs of weights. With `partly`, a forward pass ends when all of a pass's were called."""

    def __init__(self, task: Task, weights: Weights, sums: Sums, partly: bool = False) -> None:
        self._task, self._weights, self._kind, self._partly = task, weights, sums, partly
        self._counts: dict[str, int] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}

    def begin(self, names: Sequence[str]) -> None:
        """Start a pass for these weights, from zero."""
        self._counts, self._sums = dict.fromkeys(names, 0), {name: {} for name in names}

    def prepare(self, batch: Batch) -> None:
        """Nothing is to be known of a batch."""

    def add(self, batch: Batch, first: int) -> None:
        """Take in a batch."""
        with torch.no_grad(), self._hooked(batch, first):
            try:
                call_user(self._task.outputs, "the task's outputs", self._task.model, batch)
            except Enough:
                return

    @contextmanager
    def _hooked(self, batch: Batch, first: int) -> Iterator[None]:
        last: dict[str, weakref.ref[Tensor]] = {}
        wanted = [*self._counts, *(name for name, kept in self._weights.same.items() if kept in self._counts)]
        left = {module for name in wanted for module in self._weights.modules[name]}

        def note(
            name: str, module: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object], _: object
        ) -> None:
            x, kept = first_tensor(arguments, keywords), self._weights.same.get(name)
            if x is not None and kept is None:
                last[name] = weakref.ref(x)
                self._take(name, module, x, batch, first)
            elif x is not None and kept is not None and (kept not in last or last[kept]() is not x):
                fact = f"{printable(name)} does not have the inputs of {printable(kept)} for every batch"
                raise Failed(fact, "measure them one after the other: --include")
            left.discard(module)
            if self._partly and not left:
                raise Enough

        hooks = [
            module.register_forward_hook(partial(note, name), with_kwargs=True)
            for name in wanted
            for module in self._weights.modules[name]
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, name: str, module: nn.Module, x: Tensor, batch: Batch, first: int) -> None:
        for piece in _inputs(module, x, batch):
            for ending, values in self._kind.of(piece).items():
                if not math.isfinite(float(values.sum())):
                    raise _not_finite(name, x, batch, first)
                sums = self._sums[name]
                sums[ending] = sums[ending].add_(values) if ending in sums else values.double()
            self._counts[name] += piece.shape[1]

    def state(self) -> dict[str, Tensor]:
        """The sums so far, and the number of positions."""
        sums = {f"{n}/{e}": t for n, held in enumerate(self._sums.values()) for e, t in held.items()}
        return {"counts": torch.tensor(list(self._counts.values())), **sums}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from these sums."""
        device = next(self._task.model.parameters()).device
        names = list(self._counts)
        self._counts = dict(zip(names, state["counts"].tolist(), strict=True))
        for key, values in state.items():
            if key != "counts":
                place, _, ending = key.partition("/")
                self._sums[names[int(place)]][ending] = values.to(device)

    def result(self, examples: int) -> dict[str, Tensor]:
        """The means over positions, as float32."""
        return {
            name + ending: values.float().cpu()
            for name, count in self._counts.items()
            if count
            for ending, values in self._kind.result(self._sums[name], count).items()
        }


def _inputs(module: nn.Module, x: Tensor, batch: Batch) -> Iterator[Tensor]:
    """(groups, positions, d), for some rows after another."""
    if not is_convolution(module):
        yield as_wide(_counted(x, batch))[None]
        return
    groups, d = width(module)
    x = as_wide(x if x.ndim == len(module.kernel_size) + 2 else x[None])
    each = x.element_size() * d * groups * max(1, x[0, 0].numel())
    for part in torch.split(x, max(1, _PIECE // each)):
        yield patches(module, part).transpose(0, 1).flatten(1, 2)


def _counted(x: Tensor, batch: Batch) -> Tensor:
    """The positions (positions, d) of an input, without padding where the batch's mask says which those are."""
    mask = batch.get("attention_mask")
    flat = x.reshape(-1, x.shape[-1])
    if mask is None or mask.ndim != 2:
        return flat
    fits = x.shape[:2] == mask.shape if x.ndim == 3 else x.ndim == 2 and len(x) == mask.numel() != len(mask)
    return flat[mask.reshape(-1) != 0] if fits else flat


def _not_finite(name: str, x: Tensor, batch: Batch, first: int) -> Failed:
    count = len(next(iter(batch.values())))
    where = f"examples {first:,} to {first + count - 1:,}"
    if len(x) % count == 0:
        wrong = ~torch.isfinite(x.reshape(count, -1)).all(1)
        where = f"example {first + int(wrong.nonzero()[0]):,}" if bool(wrong.any()) else where
    return Failed(f"{printable(name)}: its inputs are not finite for {where}", "look at the example, and the weights")
