"""sha256 of whole files, several at a time, in a little memory."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paramsmith.device import pick_threads
from paramsmith.errors import Failed, printable
from paramsmith.inputs import open_regular, place
from paramsmith.progress import Progress

_CHUNK = 1 << 20


def sha256_of(paths: Iterable[Path], progress: Progress | None = None) -> dict[Path, str]:
    """The hash of every file. InvalidInput for one that cannot be opened, Failed for one that cannot be read."""
    wanted = list(dict.fromkeys(paths))
    total = sum(path.stat().st_size for path in wanted if path.is_file()) if progress else 0
    lock, done = threading.Lock(), 0

    def advance(count: int) -> None:
        nonlocal done
        if progress is not None:
            with lock:
                done += count
                progress(min(done, total), total)

    stop = threading.Event()

    def hashed(path: Path) -> str:
        return _sha256(path, advance, stop)

    with ThreadPoolExecutor(min(8, pick_threads(None))) as pool:
        try:
            return dict(zip(wanted, pool.map(hashed, wanted), strict=True))
        except BaseException:
            stop.set()  # an interrupt does not wait for gigabytes
            pool.shutdown(cancel_futures=True)
            raise


def _sha256(path: Path, advance: Callable[[int], None], stop: threading.Event) -> str:
    fd, before = open_regular(path)
    digest, held = hashlib.sha256(), bytearray(_CHUNK)
    view, position = memoryview(held), 0
    try:
        while (count := os.preadv(fd, [view], position)) and not stop.is_set():
            digest.update(view[:count])
            position += count
            advance(count)
        after = os.fstat(fd)
    except OSError as error:
        raise Failed(f"{place(path)}: cannot be read: {printable((error.strerror or '').lower())}") from None
    finally:
        os.close(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Failed(f"{place(path)}: changed while being read", "leave the files alone meanwhile")
    return digest.hexdigest()
