"""One file of the Hub coming to its place: it grows beside it, is hashed as it grows, and is there once it is right.

What has come outlives the process, killed or not: the next run hashes it again and asks for the rest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paramsmith.disk import sync_folder, write_at, write_error
from paramsmith.errors import Failed, printable
from paramsmith.hub import RemoteFile
from paramsmith.hubcache import HASH
from paramsmith.inputs import open_regular, place, read_at
from paramsmith.transfer import Source

_PIECE = 1 << 20


class Partial:
    """A file on its way to `target`, as far as it has come. One process and thread at a time may work on it."""

    def __init__(self, file: RemoteFile, target: Path, path: Path) -> None:
        """`path` is where it grows: in the folder of `target`."""
        self.file, self.target, self.path = file, target, path

    @property
    def missing(self) -> int:
        """Bytes that have not come yet."""
        try:
            size = self.path.stat().st_size
        except OSError:
            size = 0
        return self.file.size - (size if size <= self.file.size else 0)

    def complete(
        self,
        what: str,
        source: Source,
        tell: Callable[[int], None],
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """Have the rest come, and put the file in place. `tell` hears how many of its bytes are right so far.

        A file with another hash than the Hub lists is thrown away and comes once more; Failed when that is wrong, too.
        """
        found = ""
        with self._opened() as fd:
            for _ in range(2):
                found = self._grow(fd, source, tell, pause)
                if found == self.file.etag:
                    self._publish(fd)
                    return
                os.ftruncate(fd, 0)
            self.path.unlink(missing_ok=True)
        kind = "sha256" if self.file.sha256 else "git hash"
        fact = f"{what}: what arrives has the {kind} {found}, the hub lists {printable(self.file.etag)}"
        raise Failed(fact, "try again later; the copy on the hub, or a proxy on the way, is damaged")

    def copy(self, source: Path, tell: Callable[[int], None]) -> None:
        """Copy it from the cache. Failed when what came is not what the hub has under that name.

        Whether it is cannot be told of a cache without links, which names no hashes.
        """
        with self._opened() as fd:
            os.ftruncate(fd, 0)
            other, _ = open_regular(source)
            try:
                at = 0
                while at < self.file.size:
                    at += _copied(other, source, fd, self.path, at, self.file.size - at)
                    tell(at)
            finally:
                os.close(other)
            if HASH.fullmatch(self.file.etag) and self._read(fd, at).hexdigest() != self.file.etag:
                self.path.unlink(missing_ok=True)
                raise self._damaged(source)
            self._publish(fd)

    def _damaged(self, source: Path) -> Failed:
        from paramsmith.lineage import cached_reference

        reference = cached_reference(source)
        what = str(reference) if reference and reference.path else f"{place(source)}: {printable(self.file.path)}"
        return Failed(f"{what}: is damaged in the cache", f"remove it there, and try again: {place(source.resolve())}")

    def _read(self, fd: int, size: int, tell: Callable[[int], None] | None = None) -> hashlib._Hash:
        """The hash, as the hub takes it of this file, of what is there so far."""
        # what git calls the content of a file: the hash of its size and its bytes
        git = hashlib.sha1(b"blob %d\0" % self.file.size, usedforsecurity=False)
        digest, at = hashlib.sha256() if self.file.sha256 else git, 0
        while at < size:
            piece = read_at(self.path, fd, at, min(_PIECE, size - at))
            digest.update(piece)
            at += len(piece)
            if tell is not None:
                tell(at)
        return digest

    def _grow(
        self, fd: int, source: Source, tell: Callable[[int], None], pause: Callable[[float], object] | None
    ) -> str:
        """The hash of the file, once it is as long as it should be."""
        file, at = self.file, os.fstat(fd).st_size
        if at > file.size:
            os.ftruncate(fd, 0)
            at = 0
        digest = self._read(fd, at, tell)

        def take(piece: bytes) -> None:
            nonlocal at
            write_at(fd, piece, at, self.path)
            digest.update(piece)
            at += len(piece)
            tell(at)

        source.read(at, file.size, take, pause)
        return digest.hexdigest()

    def _publish(self, fd: int) -> None:
        os.fsync(fd)
        os.replace(self.path, self.target)
        sync_folder(self.target.parent)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fd = -1
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            yield fd
        except OSError as error:
            raise write_error(error, self.path) from error
        finally:
            if fd >= 0:
                os.close(fd)


def _copied(other: int, source: Path, fd: int, path: Path, at: int, count: int) -> int:
    """How many bytes a piece of the copy had; the file system shares them where it can."""
    with suppress(OSError):  # not between any two file systems
        copied = os.copy_file_range(other, fd, min(count, 64 * _PIECE), at, at)
        if copied:
            return copied
    piece = read_at(source, other, at, min(count, _PIECE))
    write_at(fd, piece, at, path)
    return len(piece)
