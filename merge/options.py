"""How a merge is run, as opposed to what is merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from paramsmith.device import DEFAULT_MEMORY, parse_bytes, resident_memory

Compile = Literal["auto", "always", "never"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RunOptions:
    """How to run a merge; none of it changes what is asked for."""

    memory: str | int | None = None
    device: str = "cpu"
    threads: int | None = None
    compile: Compile = "auto"
    block: int | None = None
    force: bool = False
    strict: bool = False
    progress: Progress | None = None


def memory_of(options: RunOptions) -> int:
    """The memory budget in bytes; by default it makes room in a process that holds much already."""
    if options.memory is not None:
        return parse_bytes(options.memory)
    return max(DEFAULT_MEMORY, resident_memory() + DEFAULT_MEMORY // 2)
