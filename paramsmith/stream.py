"""The engine's moving part: workers that each read, compute and write one block after another.

Reading and writing leave the interpreter's lock, and so do kernels, so with a few workers all three overlap. Every
worker reuses its own buffers: fresh memory costs a page fault every 4 KiB, which is half the speed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from paramsmith.blocks import Block, Sized
from paramsmith.device import one_thread_an_operation
from paramsmith.dtypes import DType, torch_dtype
from paramsmith.memory import as_bytes

B = TypeVar("B")


class Source(Protocol):
    """One model's part in an output tensor."""

    @property
    def read(self) -> Callable[[int, memoryview], None]:
        """Fills a buffer with the tensor's bytes from a given one on."""
        ...

    @property
    def dtype(self) -> DType:
        """How it is stored."""
        ...


class Task(Sized, Protocol):
    """An output tensor and the tensors it is made from."""

    @property
    def sources(self) -> Sequence[Source]:
        """One a model, the base first where deltas are wanted."""
        ...


class Scratch:
    """One worker's buffers, by purpose: grown when needed, never given back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._flat: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._bytes: dict[str, memoryview] = {}

    def take(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype, *, host: bool = False) -> Tensor:
        """An uninitialised tensor that lasts until the same purpose is asked for again; `host` is pinned for a GPU."""
        view = self._views.get((purpose, shape, dtype))
        if view is not None:
            self._last[purpose] = view
            return view
        nbytes = math.prod(shape) * dtype.itemsize
        flat = self._flat.get(purpose)
        if flat is None or flat.numel() < nbytes:
            pinned = host and self.device.type == "cuda"
            place = torch.device("cpu") if host else self.device
            flat = self._flat[purpose] = torch.empty(nbytes, dtype=torch.uint8, device=place, pin_memory=pinned)
            self._views = {key: kept for key, kept in self._views.items() if key[0] != purpose}
            self._bytes.pop(purpose, None)
        view = flat[:nbytes].view(dtype).view(shape)
        self._views[purpose, shape, dtype] = self._last[purpose] = view
        return view

    def last(self, purpose: str) -> Tensor:
        """The tensor last taken for a purpose."""
        return self._last[purpose]

    def bytes_of(self, purpose: str) -> memoryview:
        """The bytes of the host buffer last taken for a purpose, and what lies behind them."""
        held = self._bytes.get(purpose)
        if held is None:
            held = self._bytes[purpose] = as_bytes(self._flat[purpose])
        return held

    def counting(self, count: int) -> Tensor:
        """0, 1, 2, ... as int32: (count,)."""
        flat = self._flat.get("counting")
        if flat is None or flat.numel() < count:
            flat = self._flat["counting"] = torch.arange(count, dtype=torch.int32, device=self.device)
        return flat[:count]


def read_block(block: Block[Task], scratch: Scratch, wide: torch.dtype) -> Tensor:
    """Read a block of every source: (sources, n) on the device, as stored, or in `wide` where the sources differ."""
    sources = block.task.sources
    first = sources[0].dtype
    if all(source.dtype is first for source in sources):
        raw = scratch.take("raw", (len(sources), block.count), torch_dtype(first), host=True)
        data, size = scratch.bytes_of("raw"), block.count * first.itemsize
        for row in range(len(sources)):
            read_row(block, row, data[row * size : (row + 1) * size])
    else:
        raw = scratch.take("raw", (len(sources), block.count), wide, host=True)
        for row, source in enumerate(sources):
            stored = scratch.take("stored", (block.count,), torch_dtype(source.dtype), host=True)
            read_row(block, row, scratch.bytes_of("stored"))
            raw[row].copy_(stored)
    if scratch.device.type == "cpu":
        return raw
    return scratch.take("device", tuple(raw.shape), raw.dtype).copy_(raw, non_blocking=True)


def read_row(block: Block[Task], row: int, buffer: memoryview) -> None:
    """Read one source's bytes of a block into the front of a buffer."""
    for span in block.spans:
        source = span.task.sources[row]
        size = source.dtype.itemsize
        source.read(span.start * size, buffer[span.at * size : (span.at + span.count) * size])


def run_workers(items: Iterable[B], work: Callable[[B, Scratch], None], threads: int, device: torch.device) -> None:
    """Let `threads` workers take items in order until none is left; the first error stops all and is raised here."""
    queue, lock = iter(items), threading.Lock()
    errors: list[BaseException] = []

    def worker(ended: threading.Event) -> None:
        try:
            scratch = Scratch(device)
            with torch.inference_mode(), torch.cuda.stream(scratch.stream):
                while not errors:
                    with lock:
                        item = next(queue, None)
                    if item is None:
                        return
                    work(item, scratch)
        except BaseException as problem:  # noqa: BLE001 - handed to the caller, whatever it is
            errors.append(problem)
        finally:
            ended.set()

    with one_thread_an_operation():
        ends = [threading.Event() for _ in range(threads)]
        crew = [threading.Thread(target=worker, args=(end,), name="worker", daemon=True) for end in ends]
        try:
            for thread in crew:
                thread.start()
            for end in ends:
                end.wait()
        except BaseException as problem:
            errors.append(problem)
            # A thread still in native code when the interpreter ends takes the process down. Not `join` alone:
            # interrupted once, Python 3.11 takes the thread for ended.
            for thread, end in zip(crew, ends, strict=True):
                if thread.ident is not None:
                    end.wait()
                    thread.join()
            raise
    if errors:
        raise errors[0]
