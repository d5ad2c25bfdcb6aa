"""Files of the Hub on this machine: verified, resumed where an earlier run was stopped, in the cache of every tool.

What is on its way to the cache is `blobs/<hash>.paramsmith`, and the client's own lock keeps it to one process. Large
and small files, stored with Xet or not, all come over plain HTTP, which can be resumed and hashed on the way.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from paramsmith.disk import check_space, write_error
from paramsmith.errors import Failed, InvalidInput, Refused
from paramsmith.hub import RemoteFile, Snapshot, cache_folder, offline, repo_folder
from paramsmith.hubcache import blob_path, cached, has_size, listed, remember_revision
from paramsmith.inputs import open_regular, read_at
from paramsmith.partial import Partial
from paramsmith.progress import Progress
from paramsmith.transfer import source

__all__ = ["cached", "download", "fetch", "missing_bytes", "read_range", "remember_revision"]

AT_ONCE = 4  # files that come at the same time
_SUFFIX = ".paramsmith"
_LOOK = 0.5  # seconds between two looks at whether to stop, while another process has the lock


def fetch(snapshot: Snapshot, names: Sequence[str], progress: Progress | None = None) -> dict[str, Path]:
    """These files in the cache, complete; what is missing is downloaded, `progress` counting its bytes.

    InvalidInput for a name that the snapshot does not have, or that the cache does not have while the network is
    switched off; Refused when the disk is too small; Failed when the bytes are not those the Hub lists.
    """
    missing = _missing(snapshot, names)
    if missing:
        _refuse_offline(snapshot, missing[0].file)
        _make_room(missing)
        _bring(snapshot, missing, progress)
    found = {name: cached(snapshot, name) for name in names}
    for name, path in found.items():
        if path is None:
            raise Failed(f"{snapshot}/{name}: was removed from the cache", "leave the cache alone during a run")
    return {name: path for name, path in found.items() if path is not None}


def missing_bytes(snapshot: Snapshot, names: Sequence[str]) -> int:
    """Bytes that `fetch` would download."""
    return sum(each.missing for each in _missing(snapshot, names))


def read_range(snapshot: Snapshot, name: str, start: int, count: int) -> bytes:
    """`count` bytes from `start`, fewer only at the end of the file; not verified, which takes the whole file."""
    file = listed(snapshot, name)
    stop = min(start + count, file.size)
    if not 0 <= start < stop:
        return b""
    here = cached(snapshot, name)
    if here is not None:
        fd, _ = open_regular(here)
        try:
            return read_at(here, fd, start, stop - start)
        finally:
            os.close(fd)
    _refuse_offline(snapshot, file)
    found = bytearray()
    source(snapshot, name).read(start, stop, found.extend)
    return bytes(found)


def download(snapshot: Snapshot, name: str, target: Path, progress: Progress | None = None) -> None:
    """One file at `target`, outside the cache; a copy where the cache has it. Resumed from `.<name>.paramsmith`."""
    file = listed(snapshot, name)
    coming = Partial(file, target, target.with_name(f".{target.name}{_SUFFIX}"))
    here = cached(snapshot, name)
    missing = coming.missing if here is None else file.size
    tell = _Tally(progress).counter(missing, file.size)
    try:
        check_space(target.parent, missing)
    except OSError as error:
        raise write_error(error, target) from error
    if here is not None:
        return coming.copy(here, tell)
    _refuse_offline(snapshot, file)
    return coming.complete(f"{snapshot}/{name}", source(snapshot, name), tell)


class _Stopped(BaseException):
    """Another file has failed, or the user has interrupted: not an error of this one."""


class _Tally:
    """Counts the missing bytes of several files together."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._total, self._done = progress, 0, 0
        self._lock = threading.Lock()

    def counter(self, missing: int, size: int) -> Callable[[int], None]:
        """What hears how far a file of this size has come."""
        self._total += missing
        counted = before = size - missing

        def tell(at: int) -> None:
            nonlocal counted
            with self._lock:
                self._done += max(at, before) - counted
                counted = max(at, before)
                if self._progress is not None:
                    self._progress(self._done, self._total)

        return tell


def _missing(snapshot: Snapshot, names: Sequence[str]) -> list[Partial]:
    """What is to be downloaded; files with the same content once."""
    lacking = {}
    for name in names:
        if cached(snapshot, name) is None:
            file = snapshot.files[name]
            blob = blob_path(snapshot, file)
            lacking[file.etag] = Partial(file, blob, blob.with_name(blob.name + _SUFFIX))
    return list(lacking.values())


def _bring(snapshot: Snapshot, missing: Sequence[Partial], progress: Progress | None) -> None:
    """Complete these, some at a time. The first error stops the others; what has come stays for the next run."""
    tally, stop = _Tally(progress), threading.Event()
    waiting = deque((each, tally.counter(each.missing, each.file.size)) for each in missing)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            try:
                coming, count = waiting.popleft()
            except IndexError:
                return
            try:
                _complete(snapshot, coming, count, stop)
                ended.put(None)
            except BaseException as problem:  # noqa: BLE001 - raised again by the thread that waits
                ended.put(problem)  # before the others stop, so that theirs is not the first
                stop.set()

    # daemons, as a thread that waits for a silent server must not keep the process from ending
    crew = [threading.Thread(target=work, name=f"download {i}", daemon=True) for i in range(AT_ONCE)]
    try:
        for thread in crew[: len(missing)]:
            thread.start()
        for _ in missing:
            problem = ended.get()
            if problem is not None:
                raise problem
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("what has been downloaded is kept, and the same command goes on from there")
        raise
    finally:
        stop.set()
        for thread in crew[: len(missing)]:
            if thread.ident is not None:
                thread.join(_LOOK)


def _complete(snapshot: Snapshot, coming: Partial, count: Callable[[int], None], stop: threading.Event) -> None:
    file = coming.file

    def tell(at: int) -> None:
        if stop.is_set():
            raise _Stopped
        count(at)

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise _Stopped

    with _locked(snapshot, file, pause):
        if not has_size(coming.target, file.size):  # another process may have brought it meanwhile
            what = f"{snapshot}/{file.path}"
            coming.complete(what, source(snapshot, file.path), tell, pause)
    count(file.size)
    cached(snapshot, file.path)


@contextmanager
def _locked(snapshot: Snapshot, file: RemoteFile, pause: Callable[[float], object]) -> Iterator[None]:
    """Hold the client's own lock of a blob, so that whatever else fills the cache waits for this, and this for it."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path = cache_folder() / ".locks" / repo_folder(snapshot.repo).name / f"{file.etag}.lock"
    with ExitStack() as stack:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(WeakFileLock(path, timeout=_LOOK))
                break
            except TimeoutError:
                pause(0)
            except OSError as error:
                raise write_error(error, path) from error
        yield


def _make_room(missing: Sequence[Partial]) -> None:
    """Make the folder of the blobs, and refuse when its disk is too small for them."""
    folder = missing[0].target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, sum(each.missing for each in missing))
    except OSError as error:
        raise write_error(error, folder) from error
    except Refused as refused:
        raise Refused(refused.fact, "free some space, or set HF_HUB_CACHE to a folder on another disk") from None


def _refuse_offline(snapshot: Snapshot, file: RemoteFile) -> None:
    if offline():
        fact = f"{snapshot}/{file.path}: is not in the cache, and the network is switched off"
        raise InvalidInput(fact, "unset HF_HUB_OFFLINE")
