"""The yardstick: read every input, copy one of them to the output, no arithmetic; what a merge cannot beat.

python -m tests.bench.parallel_copy OUT INPUT...
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

CUT = 1 << 21  # bytes


def parallel_copy(inputs: Sequence[Path], output: Path, threads: int) -> float:
    """Seconds for `threads` workers to read all inputs in the same cuts, write the first, and fsync."""
    files = [os.open(path, os.O_RDONLY) for path in inputs]
    size = os.fstat(files[0]).st_size
    started = time.perf_counter()
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(target, size)
    places, lock = iter(range(0, size, CUT)), threading.Lock()

    def work() -> None:
        buffers = [memoryview(bytearray(CUT)) for _ in files]
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            count = min(CUT, size - place)
            for file, buffer in zip(files, buffers, strict=True):
                if os.preadv(file, [buffer[:count]], place) != count:
                    raise OSError(f"short read at {place}")
            os.pwrite(target, buffers[0][:count], place)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    os.fsync(target)
    seconds = time.perf_counter() - started
    for file in (*files, target):
        os.close(file)
    return seconds


if __name__ == "__main__":
    print(f"{parallel_copy([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), os.cpu_count() or 1):.3f}")
