"""A model of the Hub as a folder of this machine: its small files, and weight files of which only the headers are here.

The folder has every file at its size, but without content: a header of some kilobytes, then nothing. So whatever can be
checked without weights is checked by the code that checks a local model, before a byte of them is downloaded.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paramsmith.download import cached, download, fetch, missing_bytes, read_range, remember_revision
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import MAX_HEADER
from paramsmith.hub import Reference, Snapshot, offline, snapshot
from paramsmith.progress import Progress
from paramsmith.tensorfiles import HubFile

_SMALL = (".json",)  # read before any weight; other small files come with the weights
_MOST_SMALL = 110_000_000
_AT_ONCE = 8  # headers
_PREFIX = "paramsmith-"
_HEAD = 1 << 16  # bytes of the first request for a header, which most headers fit in


class RemoteFolder:
    """The folder for one reference, until it is closed. `path` is what to open: the folder, or a file in it."""

    def __init__(self, reference: Reference) -> None:
        """Ask what the repository holds, and lay out the folder. InvalidInput or Failed says why not."""
        self.snapshot: Snapshot = snapshot(reference)
        self.reference = reference.at(self.snapshot.commit)
        self._asked = reference
        self.warnings: list[str] = []
        if not self.snapshot.complete and not offline():
            self.warnings.append(f"{reference}: the hub is out of reach, {self.snapshot} is taken from the cache")
        single = reference.path in self.snapshot.files
        self._prefix = reference.path.rpartition("/")[0] if single else reference.path.rstrip("/")
        self._names = self._inside(self._prefix)
        if not self._names:
            raise InvalidInput(f"{printable(reference)}: has no such file or folder", "check the name")
        _sweep()
        self._temporary = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")
        self.folder = Path(self._temporary.name) / _folder_name(self.snapshot)
        self.path = self.folder / reference.path.rpartition("/")[2] if single else self.folder
        try:
            self._lay_out()
        except BaseException as problem:
            self.close()
            if isinstance(problem, OSError):  # names that no folder can have, or that are in each other's way
                fact = f"{printable(reference)}: cannot be laid out here: {printable((problem.strerror or '').lower())}"
                raise InvalidInput(fact, "do not trust this model") from None
            raise

    def open(self, path: Path) -> HubFile:
        """A weight file of the folder, after `read_heads`. InvalidInput for a bad header."""
        name = self._remote(path)
        return HubFile(path, self.snapshot.files[name].sha256, lambda: self._bring([name], None)[name])

    def read_heads(self, paths: Sequence[Path]) -> None:
        """Read the headers of these files, which they need to be opened; several at a time.

        InvalidInput for one that the repository does not have.
        """
        for path in paths:
            if path.name not in self._names:
                fact = f"{self.folder}: there is no {printable(path.name)}, which the index names"
                raise InvalidInput(fact, "the upload of this model is not complete")
        _several(self._read_head, [path for path in paths if not path.is_symlink()])

    def missing(self, paths: Sequence[Path]) -> int:
        """Bytes of these files that the cache does not have."""
        return missing_bytes(self.snapshot, [self._remote(path) for path in paths])

    def fetch(self, paths: Sequence[Path], progress: Progress | None = None) -> None:
        """Have these files in the cache."""
        self._bring([self._remote(path) for path in paths], progress)

    def fetch_beside(self, names: Sequence[str]) -> None:
        """Have the content of these other files, named as in the folder, in the folder."""
        found = fetch(self.snapshot, [self._names[name] for name in names])
        for name in names:
            self._link(self.folder / name, found[self._names[name]])

    def fetch_folder(self, names: Sequence[str]) -> Path:
        """A folder of the cache with these files, whole."""
        found = self._bring([self._names[name] for name in names], None)
        return found[self._names[names[0]]].parent

    @property
    def names(self) -> list[str]:
        """The names in the folder."""
        return list(self._names)

    def download(self, path: Path, target: Path) -> None:
        """One weight file, verified, to a path outside the cache."""
        download(self.snapshot, self._remote(path), target)

    def close(self) -> None:
        """Remove the folder; what was fetched stays in the cache."""
        self._temporary.cleanup()

    def _inside(self, prefix: str) -> dict[str, str]:
        """{name in the folder: name in the repository}, at most one level of subfolders deep."""
        start = f"{prefix}/" if prefix else ""
        found = {name.removeprefix(start): name for name in self.snapshot.files if name.startswith(start)}
        return {name: remote for name, remote in found.items() if name.count("/") <= 1}

    def _lay_out(self) -> None:
        self.folder.mkdir(parents=True)
        small = []
        for name, remote in self._names.items():
            path, size = self.folder / name, self.snapshot.files[remote].size
            path.parent.mkdir(exist_ok=True)
            here = cached(self.snapshot, remote)
            if here is not None:
                path.symlink_to(here)
                continue
            path.touch()
            os.truncate(path, size)
            if name.endswith(_SMALL) and "/" not in name and name.startswith(("config", "model", "diffusion")):
                small.append(name)
        if any(self.snapshot.files[self._names[name]].size > _MOST_SMALL for name in small):
            fact = f"{self.snapshot}: an index of more than {_MOST_SMALL:,} bytes"
            raise InvalidInput(fact, "do not trust this model")
        self.fetch_beside(small)

    def _bring(self, names: Sequence[str], progress: Progress | None) -> dict[str, Path]:
        found = fetch(self.snapshot, names, progress)
        # only now: without the Hub the revision shall mean a commit of which the weights are here
        remember_revision(self._asked, self.snapshot)
        return found

    def _link(self, path: Path, content: Path) -> None:
        if not path.is_symlink():
            path.unlink()
            path.symlink_to(content)

    def _read_head(self, path: Path) -> None:
        name, size = self._remote(path), path.stat().st_size
        head = read_range(self.snapshot, name, 0, min(_HEAD, size))
        length = 8 + int.from_bytes(head[:8], "little")
        if len(head) < length <= min(size, MAX_HEADER + 8):
            head += read_range(self.snapshot, name, len(head), length - len(head))
        with path.open("r+b") as file:
            file.write(head[:length])

    def _remote(self, path: Path) -> str:
        return self._names[path.relative_to(self.folder).as_posix()]


@dataclass
class _Held:
    fd: int
    users: int = 0


class Window:
    """A few whole weight files of one model, without names on the disk, each let go of when another is wanted."""

    def __init__(self, remote: RemoteFolder, limit: int, folder: Path) -> None:
        """`limit` files at most, on the disk of `folder`."""
        self._remote, self._limit, self._folder = remote, limit, folder
        self._held: dict[Path, _Held] = {}  # the one used last at the end
        self._lock = threading.Lock()
        self._coming: dict[Path, threading.Lock] = {}

    @contextmanager
    def lend(self, file: HubFile) -> Iterator[int]:
        """A descriptor of the file's content, for the length of a read."""
        held = self._take(file.path)
        if held is None:
            with self._lock:
                coming = self._coming.setdefault(file.path, threading.Lock())
            with coming:
                held = self._take(file.path) or self._bring(file)
        try:
            yield held.fd
        finally:
            with self._lock:
                held.users -= 1

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            held, self._held = self._held, {}
        for each in held.values():
            os.close(each.fd)

    def _take(self, path: Path) -> _Held | None:
        with self._lock:
            held = self._held.pop(path, None)
            if held is not None:
                held.users += 1
                self._held[path] = held
            return held

    def _bring(self, file: HubFile) -> _Held:
        self._drop(self._limit - 1)
        with tempfile.TemporaryDirectory(prefix=".paramsmith-", dir=self._folder) as passing:
            target = Path(passing) / file.path.name
            self._remote.download(file.path, target)
            held = _Held(file.open_content(target), 1)
        with self._lock:
            self._held[file.path] = held
        return held

    def _drop(self, limit: int) -> None:
        with self._lock:
            idle = [path for path, held in self._held.items() if not held.users]
            for path in idle[: max(0, len(self._held) - limit)]:
                os.close(self._held.pop(path).fd)


def at_once(order: Sequence[Path]) -> int:
    """How many files must be held for each to be fetched once, when they are read in this order.

    >>> a, b, c = map(Path, "abc")
    >>> at_once([a, a, b, a, b, c]), at_once([a, b, c])
    (2, 1)
    """
    last = {path: position for position, path in enumerate(order)}
    held: set[Path] = set()
    most = 0
    for position, path in enumerate(order):
        held.add(path)
        most = max(most, len(held))
        if last[path] == position:
            held.remove(path)
    return most


def pin(text: str) -> str:
    """A reference with the commit that it means now; a local path as it is."""
    reference = Reference.parse(text)
    return text if reference is None else str(reference.at(snapshot(reference).commit))


def file_here(text: str) -> Path:
    """A file by its local path, or by its reference, fetched. InvalidInput where the reference names no file."""
    reference = Reference.parse(text)
    if reference is None:
        return Path(text)
    found = snapshot(reference)
    remember_revision(reference, found)
    if reference.path not in found.files:
        raise InvalidInput(f"{printable(text)}: names no file of the repository", "hf://user/repo/file.json")
    return fetch(found, [reference.path])[reference.path]


def shorten(text: str, folder: Path, label: str) -> str:
    """A message about a file of the folder, as one about the file on the Hub."""
    return text.replace(f"{folder}{os.sep}", f"{printable(label)}: ").replace(str(folder), printable(label))


def _several(work: Callable[[Path], None], paths: Sequence[Path]) -> None:
    """Do the work for each, some at a time, in threads that keep no process from ending; the first error is raised."""
    waiting, ended = deque(paths), queue.SimpleQueue[BaseException | None]()

    def run() -> None:
        try:
            for path in iter(lambda: waiting.popleft() if waiting else None, None):
                work(path)
            ended.put(None)
        except BaseException as problem:  # noqa: BLE001 - handed to the caller, whatever it is
            waiting.clear()
            ended.put(problem)

    crew = [threading.Thread(target=run, name=f"header {i}", daemon=True) for i in range(min(_AT_ONCE, len(paths)))]
    for thread in crew:
        thread.start()
    for _ in crew:
        problem = ended.get()
        if problem is not None:
            raise problem


def _sweep() -> None:
    """Remove the folders of processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        process = left.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdecimal() and not os.path.exists(f"/proc/{process}") and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)


def _folder_name(found: Snapshot) -> str:
    return f"{found.repo.replace('/', '--')}@{found.commit[:12]}"
