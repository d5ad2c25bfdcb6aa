"""Write an output in any order and from many threads; it appears at its place complete, or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from paramsmith.destination import Destination
from paramsmith.disk import check_space, sync_data, sync_folder, write_at, write_error
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.journal import Completions, Journal, Range, RangeSet, Replay, replay, tensor_ranges
from paramsmith.shards import INDEX_NAME, Layout

_FRESH = os.O_CREAT | os.O_EXCL
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20


class _OpenFile:
    """An output file; closed when the last thread lets go of it, so that its number is never another file's."""

    __slots__ = ("fd", "path")

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self.fd = -1
        try:
            self.fd = os.open(path, flags | _SAFE, 0o666)  # the umask decides, as for any file
        except OSError as error:
            raise write_error(error, path) from error

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Writer:
    """One output while it is written: a context manager around write, finish and publish.

    `key` identifies what is written. A run with the key and layout of an interrupted one goes on from there; any other
    starts over. Left without `publish`, the target stays as it was; staging stays only after a KeyboardInterrupt.
    `on_file` is told of each weight file, once, when it is on the disk in full; what it raises is its own affair.
    """

    journal_interval = 0.2  # seconds of work that an interruption may cost; and little is left to sync at the end

    def __init__(
        self,
        target: Path,
        layout: Layout,
        key: str,
        *,
        force: bool = False,
        on_file: Callable[[Path], None] | None = None,
    ) -> None:
        self._place = Destination(Path(target), force=force)
        if self._place.single and len(layout.files) != 1:
            raise ValueError(f"{target} is a single file, the layout has {len(layout.files)}")
        self._layout = layout
        self._identity = {"journal": "paramsmith 1", "key": key, "layout": layout.digest}
        self._spans = tensor_ranges(layout)
        self._on_file = on_file
        self._files: list[_OpenFile] = []
        self._before = RangeSet()
        self._added: set[str] = set()
        self._entries_synced = False
        self._complete = False
        self._journal: Journal | None = None

    @property
    def resumed_bytes(self) -> int:
        """How many bytes of tensors an interrupted run had already finished."""
        return self._before.nbytes

    def __enter__(self) -> Self:
        self._place.claim()
        before: Replay | None = None
        try:
            before = self._earlier_run()
            self._stage(before)
        except BaseException as error:
            self._close()
            self._place.leave(keep=before is not None)
            if isinstance(error, OSError):
                raise write_error(error, self._place.staging) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        # a finished output that could not be put in place is worth keeping, whatever the reason
        keep = (interrupted or self._complete) and self._place.files.is_dir()
        if interrupted and keep and error is not None:
            done = printable(self._place.staging, 400)
            error.add_note(f"the same command goes on from here; {done} holds what is done")
        try:
            self._close(flush=keep)
        finally:
            self._place.leave(keep)

    def write(self, name: str, start: int, buffer: memoryview) -> None:
        """Write `buffer` as the bytes of tensor `name` from `start` on. Thread-safe. Raises Failed naming the file."""
        number, first, after = self._spans[name]
        if not 0 <= start <= after - first - buffer.nbytes:
            raise ValueError(f"{name}: {buffer.nbytes} bytes at {start} are outside the tensor")
        self._running().check()
        file = self._files[number]
        write_at(file.fd, buffer, first + start, file.path)

    def finish(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Say that these bytes (tensor, start, end) are written. They are journaled in the background."""
        found: list[Range] = []
        for name, start, end in ranges:
            number, first, after = self._spans[name]
            if not 0 <= start <= end <= after - first:
                raise ValueError(f"{name}: bytes {start} to {end} are outside the tensor")
            found.append((number, first + start, first + end))
        self._running().finish(found)

    def is_finished(self, name: str, start: int, end: int) -> bool:
        """Whether an interrupted run had finished these bytes."""
        if not self._before:
            return False
        number, first, _ = self._spans[name]
        return self._before.covers(number, first + start, first + end)

    def remember(self, key: str, value: object) -> None:
        """Journal a small value that JSON can hold. Floats come back exactly, tuples as lists."""
        self._running().remember(key, value)

    def recall(self, key: str) -> object | None:
        """A value remembered by this run or by the interrupted one before it."""
        return self._running().recall(key)

    def add_file(self, name: str, data: bytes) -> None:
        """Put a file beside the tensors; `name` may have one subfolder. Raises InvalidInput for any other place."""
        self._put(self._new_path(name), data)

    def add_copy(self, source: Path, name: str) -> None:
        """Copy the file `source` beside the tensors, as `add_file` does."""
        path = self._new_path(name)
        try:
            # a named pipe would block here for ever without O_NONBLOCK
            fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(source, error) from error
        with open(fd, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Failed(f"{printable(source, 400)} is not a regular file")
            file = _OpenFile(path, os.O_WRONLY | _FRESH)
            position = 0
            try:
                while data := stream.read(_COPY_BYTES):
                    write_at(file.fd, data, position, path)
                    position += len(data)
            except OSError as error:
                raise _unreadable(source, error) from error
        sync_data(file.fd, path)

    def publish(self) -> None:
        """Sync and verify everything, then move it to the target. Raises Failed, the target being as it was."""
        journal = self._running()
        journal.stop()
        journal.check()
        self._refuse_holes(journal.finished)
        for number in range(len(self._files)):
            self._verify(number)
        if self._layout.index is not None:
            self._put(self._place.files / INDEX_NAME, self._layout.index)
        for folder in {self._place.files, *((self._place.files / name).parent for name in self._added)}:
            sync_folder(folder)
        self._complete = True
        self._close()
        self._place.publish(self._layout.files[0].name)
        self._complete = False
        self._place.leave(keep=False)

    def _running(self) -> Journal:
        if self._journal is None:
            raise Failed("the output is not open for writing")
        return self._journal

    def _earlier_run(self) -> Replay | None:
        before = replay(self._place.journal, self._identity)
        if before is None or not self._place.files.is_dir() or self._place.files.is_symlink():
            return None
        for file in self._layout.files:
            path = self._place.files / file.name
            if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
                return None
        return before

    def _stage(self, before: Replay | None) -> None:
        """Open or create the files, sized and with their headers, and the journal."""
        files = self._place.files
        if before is None:
            self._place.clear()
        else:
            self._before = before.finished
            _remove_others(files, {file.name for file in self._layout.files})
        check_space(self._place.parent, self._missing())
        files.mkdir(exist_ok=True)
        for planned in self._layout.files:
            file = _OpenFile(files / planned.name, os.O_RDWR | (_FRESH if before is None else 0))
            try:
                os.ftruncate(file.fd, planned.size)
            except OSError as error:
                raise write_error(error, file.path) from error
            write_at(file.fd, planned.header, 0, file.path)
            self._files.append(file)
        whole = Completions(self._layout, files, self._on_file)
        self._journal = Journal(self._place.journal, self._identity, self._sync, before, self.journal_interval, whole)

    def _missing(self) -> int:
        """Bytes the disk must still find room for: a file's holes are not there yet."""
        missing = 0
        for file in self._layout.files:
            path = self._place.files / file.name
            missing += file.size - (min(file.size, path.stat().st_blocks * 512) if path.exists() else 0)
        return missing

    def _sync(self, numbers: Collection[int]) -> None:
        """Make these files last; before the first record also all others, their sizes and the folders' entries."""
        wanted = numbers if self._entries_synced else range(len(self._files))
        for number in wanted:
            sync_data(self._files[number].fd, self._files[number].path)
        if not self._entries_synced:
            for folder in (self._place.files, self._place.staging, self._place.parent):
                sync_folder(folder)
            self._entries_synced = True

    def _refuse_holes(self, finished: RangeSet) -> None:
        """A range nobody finished is a hole of zeros, which no reader could tell from a model."""
        for number, file in enumerate(self._layout.files):
            gap = finished.first_gap(number, len(file.header), file.size)
            if gap is not None:
                name = next(name for name in file.tensors if gap < self._spans[name][2])
                raise Failed(f"{file.name}: tensor {printable(name)} was not written in full", "please report this")

    def _verify(self, number: int) -> None:
        file, planned = self._files[number], self._layout.files[number]
        try:
            os.fsync(file.fd)
            sound = os.fstat(file.fd).st_size == planned.size
            sound = sound and os.pread(file.fd, len(planned.header), 0) == planned.header
        except OSError as error:
            raise write_error(error, file.path) from error
        if not sound:
            raise Failed(f"{printable(file.path, 400)} was changed by another program while it was written")

    def _put(self, path: Path, data: bytes) -> None:
        file = _OpenFile(path, os.O_WRONLY | _FRESH)
        write_at(file.fd, data, 0, path)
        sync_data(file.fd, path)

    def _new_path(self, name: str) -> Path:
        self._running()
        if self._place.single:
            raise ValueError(f"a single-file output has no place for {name}")
        parts = name.split("/")
        if len(parts) > 2 or any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
            raise InvalidInput(f"{printable(name)}: not a name for a file of the output", "at most one subfolder")
        if name in self._added or name in {INDEX_NAME, *(file.name for file in self._layout.files)}:
            raise ValueError(f"{name} is added twice")
        path = self._place.files / name
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(error, path) from error
        self._added.add(name)
        return path

    def _close(self, flush: bool = False) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.stop(flush)
        self._files = []


def _remove_others(folder: Path, wanted: Collection[str]) -> None:
    """What an interrupted run added beside the tensors is added anew."""
    for entry in os.scandir(folder):
        if entry.name in wanted:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _unreadable(source: Path, error: OSError) -> Failed:
    return Failed(f"{printable(source, 400)}: cannot read: {(error.strerror or str(error)).lower()}")
