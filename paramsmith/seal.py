"""The line at the end of a card that tells one that was written here from one that somebody has edited since."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_SEAL = re.compile(rb"<!-- written by paramsmith, ([0-9a-f]{16}) -->\n\Z")


def sealed(text: str) -> bytes:
    """A card with the line at its end that `ours` knows it by."""
    data = text.encode()
    return data + f"\n<!-- written by paramsmith, {hashlib.sha256(data).hexdigest()[:16]} -->\n".encode()


def ours(path: Path) -> bool:
    """Whether a card is one that was written here, to the byte."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 10_000_000:
        return False
    data = path.read_bytes()
    found = _SEAL.search(data)
    return found is not None and hashlib.sha256(data[: found.start() - 1]).hexdigest()[:16] == found[1].decode()
