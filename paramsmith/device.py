"""Where the arithmetic runs, and how much memory this process may take."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paramsmith.errors import InvalidInput, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# Enough for compiled kernels on a few workers; see the README's table of peak memory.
DEFAULT_MEMORY = 600_000_000
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str | int) -> int:
    """A size: `500MB`, `2GB`, `1.5G` (decimal), `512MiB` (binary), or bytes.

    >>> parse_bytes("1.5GB"), parse_bytes("64MiB"), parse_bytes(1000)
    (1500000000, 67108864, 1000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper())
    if not found or (size := int(float(found[1]) * _UNITS[found[2] or ""])) <= 0:
        raise InvalidInput(f"{printable(text)!r} is no size", "write it as 500MB, 2GB or 512MiB")
    return size


def resident_memory() -> int:
    """Bytes of memory this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next block, where the C library can be told; for commands only.

    glibc returns large blocks to the system at once, and every new one costs a page fault each 4 KiB.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, or `auto` for a GPU when there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InvalidInput(f"no device is called {printable(name)!r}", "cpu, cuda, cuda:1 or auto")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InvalidInput(f"there is no device {name} on this machine", "use --device cpu")
    return device


def pick_threads(threads: int | None) -> int:
    """The worker threads to use: as many as there are cores this process may run on, unless told."""
    if threads is None:
        return max(1, min(16, len(os.sched_getaffinity(0))))
    if threads < 1:
        raise InvalidInput(f"{threads} threads cannot do the work", "give --threads 1 or more")
    return threads


@contextmanager
def threads_an_operation(count: int) -> Iterator[None]:
    """Let every torch operation use so many threads, then as it was. Their number can change the last bits of sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Let every torch operation use its own thread only, as where workers run side by side; then as it was."""
    with threads_an_operation(1):
        yield
