"""The loop of every measurement: over the data once for each group of tensors, kept so that it can be resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from paramsmith.errors import Failed, InvalidInput
from paramsmith.merge.task import Batch, DataDigest, Task, checked_batches, code_digest, examples_in
from paramsmith.resumable import Resumable
from paramsmith.userfile import call_user

Progress: TypeAlias = Callable[[int, int], None]
# Saving may take this share of the time.
_SHARE = 0.1
# What a state of no tensors consists of: safetensors files hold at least one.
_NOTHING = {"nothing": torch.zeros(1)}


class Collector(Protocol):
    """What is summed over the data for a group of tensors."""

    def begin(self, names: Sequence[str]) -> None:
        """Start a pass for these tensors, from zero."""
        ...

    def prepare(self, batch: Batch) -> None:
        """Look at a batch; called for every batch of a pass, also those that were taken in before an interruption."""
        ...

    def add(self, batch: Batch, first: int) -> None:
        """Take in a batch; the number of its first example in the data."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The sums so far."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from these sums."""
        ...

    def result(self, examples: int) -> dict[str, Tensor]:
        """The tensors of the output, when all examples were seen."""
        ...


@dataclass(frozen=True)
class Data:
    """A task's data, so many examples of it, and the device to put them on."""

    task: Task
    limit: int | None
    device: torch.device

    def batches(self) -> Iterator[Batch]:
        """The batches, checked, on the device; Failed when the task's code raises."""
        batches = checked_batches(self.task, self.limit)
        while (batch := call_user(next, "the task's data", batches, None)) is not None:
            yield {name: tensor.to(self.device) for name, tensor in _as_batch(batch).items()}

    def first(self) -> Batch:
        """The first batch; InvalidInput when there is none."""
        for batch in self.batches():
            return batch
        raise InvalidInput("the data is empty", "give at least one example")


@dataclass(frozen=True)
class Seen:
    """How far a pass has come, and what the data was until there; `over` at its end.

    `alive` is whether a finished tensor, of this pass or of one before, holds anything but zeros.
    """

    batches: int = 0
    examples: int = 0
    data: str = ""
    over: bool = False
    alive: bool = False


def measure(
    output: Path,
    key: Mapping[str, object],
    data: Data,
    groups: Sequence[Sequence[str]],
    collector: Collector,
    about: Callable[[Seen], Mapping[str, str]],
    *,
    force: bool,
    progress: Progress | None,
) -> int:
    """Write the file; how many examples it rests on. Killed, the same call goes on where it was.

    `key` is what the values depend on beside the data, `about` the file's metadata. InvalidInput when all are zero.
    """
    with Resumable(output, json.dumps([key, code_digest(data.task), *map(list, groups)]), force=force) as kept:
        state, plain = kept.load() or ({}, {})
        at, total = Seen(**plain), None  # type: ignore[arg-type]
        if at.over:
            total, at = at, Seen(alive=at.alive)
        for number in range(kept.parts, len(groups)):
            collector.begin(groups[number])
            if at.batches:
                collector.restore(state)
            tell = _teller(progress, number, len(groups), data.limit or (total.examples if total else 0))
            found = _one_pass(kept, data, collector, at, tell)
            if total is not None and (found.examples, found.data) != (total.examples, total.data):
                raise _changed()
            result = collector.result(found.examples)
            total = replace(found, over=True, alive=at.alive or any(bool(t.any()) for t in result.values()))
            at = Seen(alive=total.alive)
            kept.add_part(result)
            kept.save(_NOTHING, asdict(total))
        if total is None:  # killed between the last part and the note on it
            total = replace(read_through(data), alive=True)
        if not total.alive:
            raise InvalidInput("all values are zero", "on this data the outputs do not depend on the weights")
        kept.publish(about(total))
    return total.examples


def read_through(data: Data) -> Seen:
    """What there is of the data, without measuring anything."""
    digest, examples, number = DataDigest(), 0, 0
    for number, batch in enumerate(data.batches(), 1):
        digest.add(batch)
        examples += examples_in(batch, number - 1)
    return Seen(number, examples, digest.hexdigest(), over=True)


def _one_pass(kept: Resumable, data: Data, collector: Collector, at: Seen, tell: Callable[[int], None]) -> Seen:
    digest, examples, number, cost = DataDigest(), 0, 0, 0.0
    saved = time.monotonic()
    for number, batch in enumerate(data.batches(), 1):
        digest.add(batch)
        count = examples_in(batch, number - 1)
        if number == at.batches and digest.hexdigest() != at.data:
            raise _changed()
        collector.prepare(batch)
        if number > at.batches:
            collector.add(batch, examples)
        examples += count
        tell(examples)
        now = time.monotonic()
        if number > at.batches and kept.due() and now - saved > cost / _SHARE:
            kept.save(collector.state(), asdict(Seen(number, examples, digest.hexdigest(), alive=at.alive)))
            saved = time.monotonic()
            cost = saved - now
    if number < at.batches:
        raise _changed()
    return Seen(number, examples, digest.hexdigest())


def _teller(progress: Progress | None, number: int, groups: int, known: int) -> Callable[[int], None]:
    """Tells the progress in examples, over all passes; the total is 0 while nobody knows it."""
    if progress is None:
        return lambda examples: None
    return lambda examples: progress(number * known + examples, groups * known)


def _changed() -> Failed:
    return Failed("the data is not what it was when the measurement began", "run it again: it starts anew")


def _as_batch(found: object) -> Batch:
    if not isinstance(found, Mapping):
        raise InvalidInput(f"a batch is {type(found).__name__}, not a mapping of tensors", "see paramsmith.merge.task")
    return found
