"""How a merge is run, as opposed to what is merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from paramsmith.device import DEFAULT_MEMORY, parse_bytes, resident_memory
from paramsmith.progress import Progress

if TYPE_CHECKING:
    from paramsmith.target import Target

Compile = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Push:
    """Where the result goes on the Hub, and its licence where the inputs do not agree on one."""

    target: Target
    licence: str | None = None


@dataclass(frozen=True)
class RunOptions:
    """How to run a merge; none of it changes what is asked for.

    `stream`: weights of the Hub are not kept; each file is on the disk only while it is read.
    """

    memory: str | int | None = None
    device: str = "cpu"
    threads: int | None = None
    compile: Compile = "auto"
    block: int | None = None
    force: bool = False
    strict: bool = False
    progress: Progress | None = None
    stream: bool = False
    push: Push | None = None


def memory_of(options: RunOptions) -> int:
    """The memory budget in bytes; by default it makes room in a process that holds much already."""
    if options.memory is not None:
        return parse_bytes(options.memory)
    return max(DEFAULT_MEMORY, resident_memory() + DEFAULT_MEMORY // 2)
