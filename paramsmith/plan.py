"""What a run will cost, from headers alone; what `--dry-run` prints and the run is held to."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Plan:
    """Bytes, passes, memory, time, and how the arithmetic is done. Sizes in bytes, time in seconds."""

    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    passes: int
    peak_memory: int
    disk_needed: int
    seconds: float
    path: str  # "compiled" or "eager"
    why: str  # why that path
    block: int  # elements
    threads: int
    warnings: tuple[str, ...] = ()
    bytes_downloaded: int = 0  # of what is on the Hub and not in the cache yet

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)

    def describe(self) -> str:
        """The plan for a reader."""
        lines = [
            ("tensors", f"{self.tensors:,} ({self.parameters:,} parameters)"),
            ("read", f"{readable(self.bytes_read)} in {self.passes} pass{'es' * (self.passes != 1)}"),
            *([("download", readable(self.bytes_downloaded))] if self.bytes_downloaded else []),
            ("write", readable(self.bytes_written)),
            ("disk needed", readable(self.disk_needed)),
            ("peak memory", readable(self.peak_memory)),
            ("arithmetic", f"{self.path} ({self.why}), {self.threads} threads, blocks of {self.block:,}"),
            ("about", f"{self.seconds:,.1f} s"),
        ]
        return "\n".join(f"{name:12} {value}" for name, value in lines)


def readable(nbytes: float) -> str:
    """Bytes in decimal units.

    >>> readable(2_200_000_000), readable(999)
    ('2.20 GB', '999 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.2f} TB"
