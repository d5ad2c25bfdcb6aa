"""Writing so that it stays: whole writes, syncs, free space, and what went wrong as a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from paramsmith.errors import Failed, Refused, printable

_SLACK = 1_000_000  # bytes kept free for the index, the companions and the file system's own bookkeeping
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def write_error(error: OSError, path: Path) -> Failed:
    """The sentence for a write that the operating system turned down, naming the file."""
    name = printable(path, 400)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            what = "no space left" if error.errno == errno.ENOSPC else "disk quota exceeded"
            return Failed(f"{what} while writing {name}", "free some space or choose an output on another disk")
        case errno.EFBIG:
            fact = f"{name}: a file of this size is not allowed here (file system or ulimit -f)"
            return Failed(fact, "a smaller --shard-size makes smaller files")
        case errno.EIO:
            return Failed(f"{name}: the disk reported an error while writing", "check the disk before trying again")
        case errno.EMFILE:
            return Failed(f"{name}: too many open files", "a larger --shard-size makes fewer files; or raise ulimit -n")
        case errno.EROFS:
            return Failed(f"{name}: the file system became read-only", "check the disk before trying again")
    return Failed(f"{name}: cannot write: {(error.strerror or str(error)).lower()}")


def write_at(fd: int, data: bytes | memoryview, position: int, path: Path) -> None:
    """Write all of `data` at `position`; raises Failed naming `path`. Safe to call from many threads."""
    view = memoryview(data)
    if view.nbytes == 0:
        return
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    try:
        while view:
            # one call writes at most 2 GB, and less when the disk is nearly full
            written = os.pwrite(fd, view, position)
            view, position = view[written:], position + written
    except OSError as error:
        raise write_error(error, path) from error


def sync_data(fd: int, path: Path) -> None:
    """Wait until what was written to `fd` is on the disk; raises Failed naming `path`."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise write_error(error, path) from error


def sync_folder(folder: Path) -> None:
    """Wait until the entries of `folder` are on the disk: without it a rename may be lost with the power."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # some network and user-space file systems keep entries in order by themselves and do not offer this
        if error.errno not in _NO_FOLDER_SYNC:
            raise write_error(error, folder) from error


def check_space(folder: Path, missing: int) -> None:
    """Refuse when the disk of `folder` has no room for `missing` more bytes and a megabyte."""
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, missing + _SLACK
    # a file system that does not count its blocks says nothing about its free space
    if disk.f_blocks and free < needed:
        fact = f"{printable(folder, 400)}: {needed:,} bytes are needed, {free:,} bytes are free"
        raise Refused(fact, "free some space or choose an output on another disk")


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file as a whole, or leave it as it was. Raises Failed, also over a device or a folder."""
    if path.exists() and not path.is_file():
        raise Failed(f"{printable(path, 400)}: is no file that could be replaced", "choose another name")
    staged = path.with_name(f".{path.name}.partial")
    try:
        staged.unlink(missing_ok=True)
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            write_at(fd, data, 0, staged)
            sync_data(fd, staged)
        finally:
            os.close(fd)
        os.replace(staged, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(error, path) from error
