"""What leaves for the Hub: which files of a folder, the content of each, and the tree that they are to become."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hub import RemoteFile, Snapshot
from paramsmith.inputs import open_regular, place, read_at, read_json
from paramsmith.weightfiles import INDEX_SUFFIX, MAX_INDEX, PICKLES, SUFFIX

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

ITS_OWN = ".gitattributes"  # the Hub's, which it also changes by itself: neither pushed nor compared
_IN_MEMORY = 10_000_000  # bytes; the Hub takes no larger file as a plain one, which a commit holds in memory anyway
_HELD = Path("/proc/self/fd")


def files_of(folder: Path) -> dict[str, Path]:
    """What is pushed of a folder, by name: its regular files and those one folder down, sorted.

    Left out: hidden files, pickles, pipes and the like, links that lead out of the folder. InvalidInput for a folder
    without weights, for one whose index names a file that is not pushed, and for a name the Hub would not take.
    """
    try:
        home = folder.resolve(strict=True)
        found = {path.relative_to(folder).as_posix(): path for path in _candidates(folder) if _may_leave(path, home)}
    except OSError as error:
        raise InvalidInput(f"{place(folder)}: cannot be read: {(error.strerror or '').lower()}") from None
    for name in found:
        check_name(name)
    if not any(name.endswith(SUFFIX) for name in found):
        raise InvalidInput(f"{place(folder)}: holds no weights (*{SUFFIX})", "give the folder of a model")
    for name in found:
        if name.endswith(INDEX_SUFFIX):
            _check_index(name, found)
    return dict(sorted(found.items()))


def check_name(name: str) -> None:
    """InvalidInput for a name that no file of a push may have."""
    parts = name.split("/")
    strange = any(part.startswith(".") or not part or "\\" in part or ":" in part for part in parts)
    if strange or len(parts) > 2 or not name.isprintable() or len(name.encode()) > 255:
        raise InvalidInput(f"{printable(name)}: not a name for a file on the hub", "rename it; at most one subfolder")


class Outgoing:
    """One file of a push, given as its content or as a path.

    Once held, a path may be renamed or removed: the file is open, and the client, whose transports take paths or
    bytes but not all an open file, is given the path of the descriptor. Small files are read into memory at once.
    """

    def __init__(self, name: str, source: Path | bytes) -> None:
        check_name(name)
        self.name = name
        self._source = source
        self._fd = -1
        self._seen = (0, 0)
        self._blob = ""
        self._operation: CommitOperationAdd | None = None
        try:
            self.nbytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        except OSError as error:
            raise InvalidInput(f"{place(Path(str(source)))}: {(error.strerror or 'unreadable').lower()}") from None

    @property
    def is_large(self) -> bool:
        """Whether it is worth a transfer of its own."""
        return self.name.endswith(SUFFIX) or self.nbytes > _IN_MEMORY

    @property
    def sha256(self) -> str:
        """The hash of the content; reads it, where the transfer has not hashed it on its way."""
        return self.operation().upload_info.sha256.hex()

    def hold(self) -> None:
        """Open the file, if that was not done yet. InvalidInput for what is not a regular file."""
        if not isinstance(self._source, bytes) and self._fd < 0:
            self._fd, status = open_regular(self._source)
            self._seen = (status.st_size, status.st_mtime_ns)
            self.nbytes = status.st_size

    def let_go(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def operation(self) -> CommitOperationAdd:
        """The client's own description of the file; always the same object."""
        if self._operation is None:
            from huggingface_hub import CommitOperationAdd

            self._operation = CommitOperationAdd(self.name, self._content())
        return self._operation

    def content(self) -> bytes:
        """All of a small file."""
        found = self.operation().path_or_fileobj
        if not isinstance(found, bytes):
            raise Failed(f"{printable(self.name)}: is {self.nbytes:,} bytes long; at most {_IN_MEMORY:,} are read")
        return found

    def sent(self) -> None:
        """Say that the transfer is over. Failed where the file changed meanwhile."""
        self.check_unchanged()
        if self.operation().path_or_fileobj == b"":  # the client lets go of what is in the large file storage
            self.let_go()

    def check_unchanged(self) -> None:
        """Failed where somebody wrote to the file since it was opened."""
        if self._fd < 0:
            return
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._seen:
            fact = f"{printable(self.name)}: was changed by another program while it was sent"
            raise Failed(fact, "nothing was committed; push again when nobody writes to it")

    def matches(self, there: RemoteFile | None) -> bool:
        """Whether that file of the Hub has the same content."""
        if there is None or there.size != self.nbytes:
            return False
        self.operation()  # small files are hashed as they are read
        return there.sha256 == self.sha256 if there.sha256 else there.oid == self._blob

    def _content(self) -> bytes | str:
        if isinstance(self._source, bytes):
            data = self._source
        else:
            self.hold()
            if self.nbytes > _IN_MEMORY:
                held = _HELD / str(self._fd)
                return str(held if held.exists() else self._source)  # without /proc the file must stay where it is
            data = read_at(self._source, self._fd, 0, self.nbytes)
            self.check_unchanged()
        self._blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        return data


@dataclass(frozen=True)
class Wanted:
    """The tree that a push leads to: its files, and those of the old head that stay, unless they are to be `alone`."""

    files: Mapping[str, Outgoing]
    head: Snapshot
    alone: bool
    beside: bool = False

    @cached_property
    def stale(self) -> frozenset[str]:
        """Weights and indexes of the old head that are not pushed: they go, so that no two models mix."""
        if self.beside:
            return frozenset()
        return frozenset(name for name in self.head.files.keys() - self.files if name.endswith((SUFFIX, INDEX_SUFFIX)))

    def is_at(self, there: Snapshot) -> bool:
        """Whether this is the tree of that commit, by the hashes of all its files."""
        kept = frozenset() if self.alone else self.head.files.keys() - self.files - self.stale - {ITS_OWN}
        if there.files.keys() - {ITS_OWN} != kept | self.files.keys():
            return False
        same = all(there.files[name].etag == self.head.files[name].etag for name in kept)
        return same and all(file.matches(there.files[name]) for name, file in self.files.items())

    def check(self, what: str, there: Snapshot) -> None:
        """Failed, naming the first file that is not in the commit as it was sent; `what` names the commit."""
        for name, file in sorted(self.files.items()):
            if not file.matches(there.files.get(name)):
                raise Failed(f"{what}: {printable(name)} is not what was sent", "do not use this commit; push again")
        for name in sorted(self.stale & there.files.keys()):
            raise Failed(f"{what}: {printable(name)} of the old model is still there", "remove it on the hub")


def _candidates(folder: Path) -> Iterator[Path]:
    home = folder.resolve()
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif not path.name.startswith(".") and path.resolve().is_relative_to(home):
            yield from path.iterdir()


def _may_leave(path: Path, home: Path) -> bool:
    if not path.is_file() or path.name.startswith(".") or path.suffix.lower() in PICKLES:
        return False
    real = path.resolve()
    return real.is_relative_to(home) and not any(part.startswith(".") for part in real.relative_to(home).parts)


def _check_index(name: str, found: dict[str, Path]) -> None:
    """A model whose index names a file that stays behind would be a broken one."""
    shards = read_json(found[name], MAX_INDEX)[0].get("weight_map")
    beside = name.rpartition("/")[0]
    for shard in sorted({str(shard) for shard in shards.values()} if isinstance(shards, dict) else ()):
        if f"{beside}/{shard}".lstrip("/") not in found:
            fact = f"{place(found[name])}: names {printable(shard)}, which is not among the files to push"
            raise InvalidInput(fact, "it must be a regular file of the folder, not a link that leads out of it")
