"""Opening the files an input consists of: regular files only, never blocking; small JSON files read strictly."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from paramsmith.errors import Failed, InvalidInput, printable

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class DuplicateKey(ValueError):
    """A JSON object names the same key twice; `key` is that key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key} occurs twice")
        self.key = key


def place(path: Path) -> str:
    """A path as it may stand in a message: escaped, and long enough to keep the file's name whole."""
    return printable(path, limit=2000)


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """Open a regular file for reading: (descriptor, its status). Links are followed; pipes and devices are refused.

    O_NONBLOCK keeps the opening of a named pipe from waiting for a writer that never comes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise InvalidInput(*_why_unopened(path, error)) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = next((text for test, text in _KINDS if test(status.st_mode)), "not a file")
            raise InvalidInput(f"{place(path)}: is {kind}, not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _why_unopened(path: Path, error: OSError | ValueError) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        target = printable(path.readlink())
        return f"{place(path)}: is a link to {target}, which does not exist", "download the model again"
    if isinstance(error, FileNotFoundError):
        return f"{place(path)}: does not exist", "download the model again, or check the name"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    hint = "allow more open files: ulimit -n 8192" if "open files" in reason else ""
    return f"{place(path)}: cannot be opened: {printable(reason.lower())}", hint


def read_at(path: Path, fd: int, start: int, count: int) -> bytes:
    """Exactly `count` bytes from `start`; Failed where the file ends before."""
    parts: list[bytes] = []
    while count:
        try:
            part = os.pread(fd, count, start)
        except OSError as error:
            raise Failed(f"{place(path)}: cannot be read: {printable(error.strerror)}") from None
        if not part:
            raise Failed(f"{place(path)}: shrank while being read", "leave the inputs alone during a run")
        parts.append(part)
        start += len(part)
        count -= len(part)
    return b"".join(parts)


def unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An `object_pairs_hook` for json that raises DuplicateKey instead of keeping the last of two equal keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return found


def read_json(path: Path, limit: int) -> tuple[dict[str, object], bytes]:
    """A small JSON file that must hold one object: (the object, the bytes). InvalidInput names the file."""
    fd, status = open_regular(path)
    try:
        if status.st_size > limit:
            raise InvalidInput(f"{place(path)}: is {status.st_size:,} bytes long; at most {limit:,} are read")
        data = read_at(path, fd, 0, status.st_size)
    finally:
        os.close(fd)
    try:
        parsed: object = json.loads(data.decode("utf-8"), object_pairs_hook=unique_pairs)
    except DuplicateKey as error:
        raise InvalidInput(f"{place(path)}: the key {printable(error.key)} occurs twice") from None
    except RecursionError:
        raise InvalidInput(f"{place(path)}: is nested too deeply to be read") from None
    except ValueError as error:
        hint = "the file is damaged, or is not what its name says; download it again"
        raise InvalidInput(f"{place(path)}: is not valid JSON: {printable(error)}", hint) from None
    if not isinstance(parsed, dict):
        raise InvalidInput(f"{place(path)}: holds {type(parsed).__name__} where a JSON object is expected")
    return parsed, data
