"""Weight files that are open for reading: on this machine, or on the Hub and brought here when first read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from paramsmith.errors import Failed, printable
from paramsmith.header import Header, TensorInfo, parse_header
from paramsmith.inputs import open_regular, place


class TensorFile:
    """One file of weights whose header has been read and checked. Reading is thread-safe."""

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        """Open a regular file. InvalidInput for anything else, or a bad header; `sha256` where it is known."""
        self.path, self.sha256 = path, sha256
        self.fd, status = open_regular(path)
        self.mtime_ns = status.st_mtime_ns
        try:
            self.header: Header = parse_header(path, self.fd)
        except BaseException:
            self.close()
            raise
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def closed(self) -> bool:
        """Whether nothing can be read any more."""
        return self.fd < 0

    def read(self, view: memoryview, offset: int) -> int:
        """Fill the front of `view` from `offset` on; how many bytes came. OSError from the system."""
        return os.preadv(self.fd, [view], offset)

    def identity(self) -> dict[str, object]:
        """What tells this file from another, as JSON: its content where that is known, else size, time and header."""
        if self.sha256 is not None:
            return {"size": self.header.size, "sha256": self.sha256}
        return {"size": self.header.size, "mtime_ns": self.mtime_ns, "header": self.header.digest}

    def check_unchanged(self) -> None:
        """Failed when the file is no longer what it was when it was opened."""
        status = os.fstat(self.fd)
        if (status.st_size, status.st_mtime_ns) != (self.header.size, self.mtime_ns):
            raise Failed(f"{place(self.path)}: changed while being read", "leave the inputs alone during a run")

    def close(self) -> None:
        """Close it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class HubFile(TensorFile):
    """A file of the Hub of which this machine has the header, in a file with nothing behind it.

    The first read has the whole file fetched, verified, and takes its place. Kept in a window, it may be let go of
    again, and is fetched again when it is next read.
    """

    def __init__(self, path: Path, sha256: str | None, fetch: Callable[[], Path]) -> None:
        super().__init__(path, sha256)
        self._fetch, self._here, self._lock = fetch, False, threading.Lock()
        self._lease: Callable[[HubFile], AbstractContextManager[int]] | None = None

    def arrive(self) -> None:
        """Have the whole file on this machine. Failed when it is not the one whose header was read."""
        with self._lock:
            if not self._here:
                fd = self.open_content(self._fetch())
                try:
                    os.dup2(fd, self.fd, inheritable=False)
                    self.mtime_ns = os.fstat(fd).st_mtime_ns
                finally:
                    os.close(fd)
                self._here = True

    def open_content(self, path: Path) -> int:
        """A descriptor of the whole file at `path`, once its header was found to be the one that was checked."""
        fd, _ = open_regular(path)
        try:
            if parse_header(self.path, fd).digest != self.header.digest:
                raise Failed(f"{place(self.path)}: its header came otherwise than before", "run it again")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def stream(self, lease: Callable[[HubFile], AbstractContextManager[int]]) -> None:
        """Read through descriptors lent for a moment, instead of keeping the file."""
        self._lease = lease

    def read(self, view: memoryview, offset: int) -> int:
        """As for any file; waits for the file to be fetched."""
        if self._lease is not None:
            with self._lease(self) as fd:
                return os.preadv(fd, [view], offset)
        if not self._here:
            self.arrive()
        return super().read(view, offset)


class TensorReader:
    """Reads one tensor's bytes from its open file: call it with the first byte and a buffer to fill. Thread-safe."""

    __slots__ = ("_end", "_file", "_info")

    def __init__(self, file: TensorFile, info: TensorInfo) -> None:
        self._file, self._info, self._end = file, info, info.offset + info.nbytes

    def __call__(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer`, writable bytes, from byte `start` of the tensor on; Failed when the file shrank."""
        view, offset = buffer, self._info.offset + start
        if start < 0 or offset + view.nbytes > self._end or self._file.closed:
            span = f"bytes {start} to {start + view.nbytes} of {printable(self._info.name)}"
            raise ValueError(f"{span} were never there, or are read after the file was closed")
        while view.nbytes:
            try:
                count = self._file.read(view, offset)
            except OSError as error:
                raise Failed(f"{self._place()}: {printable((error.strerror or str(error)).lower())}") from None
            if count == view.nbytes:
                return
            if count == 0:
                fact = f"{self._place()}: the file shrank while being read"
                raise Failed(fact, "leave the inputs alone during a run")
            view, offset = view.cast("B")[count:], offset + count

    def _place(self) -> str:
        return f"{place(self._info.file)}: tensor {printable(self._info.name)}"
