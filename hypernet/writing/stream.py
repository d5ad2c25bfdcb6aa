"""One sample to the disk: chunks of the target are decoded side by side and written where they belong, in any order.

Memory: a worker holds a chunk (CHUNK numbers, or one tensor that is larger) as raw and scaled values, or as scaled
ones, base and sum. All together hold at most the largest chunk and a chunk for each further worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation, parse_bytes
from paramsmith.dtypes import DType, torch_dtype
from paramsmith.errors import InvalidInput
from paramsmith.header import TensorSpec
from paramsmith.hypernet.model import CHUNK, Decodes, chunks
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.memory import as_bytes
from paramsmith.shards import Layout, plan_files
from paramsmith.staging import Writer
from paramsmith.stream import Scratch, run_workers
from paramsmith.ties import TIES

from .samples import filled, finished, numbers, stored_dtype

SHARD_SIZE = "5GB"  # what the Hub's own tools write
_HELD = 4  # values of a chunk that are there at once, each of 4 bytes
_ALIASES = frozenset(tie.alias for tie in TIES)


@dataclass(frozen=True)
class Outline:
    """What is stored of a target. `dtype` is for all weights, None for each its own; `own`: buffers that are kept."""

    spec: TargetSpec
    dtype: DType | None = None
    own: Mapping[str, Tensor] | None = None

    @cached_property
    def stored(self) -> dict[str, str]:
        """The name that each slot is stored under: the first that no architecture takes for another name of it."""
        return {
            slot.name: next((n for n in (slot.name, *slot.copies) if n not in _ALIASES), slot.name)
            for slot in self.spec.slots
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Further names of stored tensors, which are not stored: {alias: stored name}."""
        return {
            name: self.stored[slot.name]
            for slot in self.spec.slots
            for name in (slot.name, *slot.copies)
            if name != self.stored[slot.name]
        }

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """The tensors that are not generated."""
        own = self.own or {}
        found: dict[str, Tensor] = {}
        for buffer in self.spec.buffers:
            held = filled(buffer, self.dtype)
            if held is None and buffer.name in own:
                held = own[buffer.name].to("cpu", torch_dtype(stored_dtype(buffer, self.dtype))).contiguous()
            if held is not None:
                found[buffer.name] = held
        return found

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Buffers that only the target's own code can fill."""
        return tuple(buffer.name for buffer in self.spec.buffers if buffer.name not in self.buffers)

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What is stored, in the order of the module."""
        slots = [
            TensorSpec(self.stored[slot.name], stored_dtype(slot, self.dtype), slot.shape) for slot in self.spec.slots
        ]
        buffers = [
            TensorSpec(buffer.name, stored_dtype(buffer, self.dtype), buffer.shape)
            for buffer in self.spec.buffers
            if buffer.name in self.buffers
        ]
        return (*slots, *buffers)

    @property
    def is_diffusers(self) -> bool:
        """Whether diffusers loads it, which looks for its weights under another name."""
        return "_class_name" in (self.spec.config or {})

    def layout(self, target: Path, shard_size: str | int | None, metadata: Mapping[str, str]) -> Layout:
        """The output files. InvalidInput for a target without tensors."""
        if not self.tensors:
            raise InvalidInput("the target has no tensors", "there is nothing to generate")
        single = target.name if target.suffix == ".safetensors" else None
        if self.is_diffusers:
            single = single or "diffusion_pytorch_model.safetensors"
        return plan_files(self.tensors, parse_bytes(shard_size or SHARD_SIZE), single, {**self.aliases, **metadata})


def fill(
    writer: Writer,
    model: Decodes,
    outline: Outline,
    condition: Condition,
    seed: int,
    index: int,
    threads: int,
    tell: Callable[[int], None],
) -> None:
    """Generate and write every tensor that an interrupted run has not written; `tell` hears of bytes.

    The bytes are the same whatever the number of threads. Failed where a value is not finite.
    """
    spec, sizes = outline.spec, {tensor.name: tensor.nbytes for tensor in outline.tensors}
    with one_thread_an_operation(), torch.no_grad():
        codes = model.codes(condition, spec, [seed], index)
    if codes.is_cuda:  # each worker has a stream of its own
        torch.cuda.synchronize(codes.device)
    largest = sorted(chunks(spec), key=lambda group: -numbers(spec, group))
    room = _Room(_in_flight(spec, threads))

    def put(name: str, values: Tensor) -> None:
        if values.nbytes and not writer.is_finished(name, 0, values.nbytes):
            writer.write(name, 0, as_bytes(values))
            writer.finish([(name, 0, values.nbytes)])
        tell(values.nbytes)

    def work(group: Sequence[int], scratch: Scratch) -> None:
        names = [outline.stored[spec.slots[i].name] for i in group]
        if all(writer.is_finished(name, 0, sizes[name]) for name in names):
            tell(sum(sizes[name] for name in names))
            return
        # a part may keep what it makes for later, when gradients are wanted
        with room.of(numbers(spec, group)), torch.inference_mode(False), torch.no_grad():
            values = model.decoded(codes, group, spec, [seed])  # (1, S, *shape)
            for i, name, made in zip(group, names, values[0].unbind(0), strict=True):
                put(name, finished(spec.slots[i], made, stored_dtype(spec.slots[i], outline.dtype)))

    run_workers(largest, work, threads, model.device)
    for name, values in outline.buffers.items():
        put(name, values)


def working_memory(spec: TargetSpec, threads: int) -> int:
    """About how many bytes the arithmetic of a sample takes, beside the generator: the chunks in flight."""
    return _HELD * 4 * _in_flight(spec, threads)


def _in_flight(spec: TargetSpec, threads: int) -> int:
    """The most numbers that are decoded at once."""
    sizes = sorted((numbers(spec, group) for group in chunks(spec)), reverse=True)
    return sizes[0] + sum(min(size, CHUNK) for size in sizes[1:threads]) if sizes else 0


class _Room:
    """Keeps several large tensors from being decoded at the same time."""

    def __init__(self, most: int) -> None:
        self._free, self._changed = most, threading.Condition()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Wait until there is room for so many numbers, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()
