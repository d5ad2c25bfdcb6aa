"""The engine's moving part: workers that each read, compute and write one block after another.

Reading and writing leave the interpreter's lock, and so do kernels, so with a few workers all three overlap. Every
worker reuses its own buffers: fresh memory costs a page fault every 4 KiB, which is half the speed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from paramsmith.blocks import Block, Sized
from paramsmith.device import one_thread_an_operation
from paramsmith.dtypes import DType, torch_dtype

B = TypeVar("B")


class Reader(Protocol):
    """What blocks are read from: a Checkpoint or a StateDict."""

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the tensor's bytes from `start`."""


class Source(Protocol):
    """One model's part in an output tensor."""

    @property
    def reader(self) -> Reader:
        """Where the tensor is."""

    @property
    def name(self) -> str:
        """What it is called there."""

    @property
    def dtype(self) -> DType:
        """How it is stored."""


class Task(Sized, Protocol):
    """An output tensor and the tensors it is made from."""

    @property
    def sources(self) -> Sequence[Source]:
        """One a model, the base first where deltas are wanted."""


class Scratch:
    """One worker's buffers, by purpose: grown when needed, never given back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._flat: dict[str, Tensor] = {}

    def take(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype, *, host: bool = False) -> Tensor:
        """An uninitialised tensor that lasts until the same purpose is asked for again; `host` is pinned for a GPU."""
        count = 1
        for side in shape:
            count *= side
        nbytes = count * dtype.itemsize
        flat = self._flat.get(purpose)
        if flat is None or flat.numel() < nbytes:
            pinned = host and self.device.type == "cuda"
            place = torch.device("cpu") if host else self.device
            flat = torch.empty(nbytes, dtype=torch.uint8, device=place, pin_memory=pinned)
            self._flat[purpose] = flat
        return flat[:nbytes].view(dtype).view(shape)

    def counting(self, count: int) -> Tensor:
        """0, 1, 2, ... as int32: (count,)."""
        flat = self._flat.get("counting")
        if flat is None or flat.numel() < count:
            flat = self._flat["counting"] = torch.arange(count, dtype=torch.int32, device=self.device)
        return flat[:count]


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def read_block(block: Block[Task], scratch: Scratch, wide: torch.dtype) -> Tensor:
    """Read a block of every source: (sources, n) on the device, as stored, or in `wide` where the sources differ."""
    dtypes = [source.dtype for source in block.task.sources]
    if all(dtype == dtypes[0] for dtype in dtypes):
        raw = scratch.take("raw", (len(dtypes), block.count), torch_dtype(dtypes[0]), host=True)
        for row, _ in enumerate(dtypes):
            read_row(block, row, as_bytes(raw[row]))
    else:
        raw = scratch.take("mixed", (len(dtypes), block.count), wide, host=True)
        for row, dtype in enumerate(dtypes):
            stored = scratch.take("stored", (block.count,), torch_dtype(dtype), host=True)
            read_row(block, row, as_bytes(stored))
            raw[row].copy_(stored)
    if scratch.device.type == "cpu":
        return raw
    return scratch.take("device", tuple(raw.shape), raw.dtype).copy_(raw, non_blocking=True)


def read_row(block: Block[Task], row: int, buffer: memoryview) -> None:
    """Read one source's bytes of a block."""
    for span in block.spans:
        source = span.task.sources[row]
        size = source.dtype.itemsize
        source.reader.read_into(
            source.name, span.start * size, buffer[span.at * size : (span.at + span.count) * size]
        )


def run_workers(
    items: Iterable[B], work: Callable[[B, Scratch], None], threads: int, device: torch.device
) -> None:
    """Let `threads` workers take items in order until none is left; the first error stops all and is raised here."""
    queue, lock = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def worker() -> None:
        scratch = Scratch(device)
        try:
            with torch.inference_mode(), torch.cuda.stream(scratch.stream):  # type: ignore[arg-type]
                while not errors:
                    with lock:
                        item = next(queue, None)
                    if item is None:
                        return
                    work(item, scratch)
        except BaseException as problem:  # noqa: BLE001 - handed to the caller, whatever it is
            errors.append(problem)

    with one_thread_an_operation():
        crew = [threading.Thread(target=worker, name=f"worker {i}", daemon=True) for i in range(threads)]
        for thread in crew:
            thread.start()
        try:
            for thread in crew:
                thread.join()
        except BaseException as problem:
            errors.append(problem)
            for thread in crew:
                thread.join()
            raise
    if errors:
        raise errors[0]
