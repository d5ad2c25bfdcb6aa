"""Where an output goes: what may stand there, who holds it, and the rename that publishes.

Beside the target `out` lives its staging folder `.out.partial` with `lock`, `journal` and `files/`, the output to be.
Publishing renames `files` to the target, so what is published never held a lock or a journal, and the lock is held
until the very end. With force the old target waits in `.out.replaced` until the new one is in place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
from pathlib import Path

from paramsmith.disk import sync_folder
from paramsmith.errors import Failed, InvalidInput, Refused, printable

_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "model_index.json")


class Destination:
    """One output path. A target ending in .safetensors is a file, any other a folder, unless `single` says which."""

    def __init__(self, target: Path, *, force: bool, single: bool | None = None) -> None:
        # a bare ".." or "." has no name of its own to put staging beside
        whole = target if target.name not in ("", "..") else target.resolve()
        self.parent = Path(os.path.realpath(whole.parent))  # unlike Path.resolve, also of links in a circle
        self.target = self.parent / whole.name
        self.single = self.target.suffix == ".safetensors" if single is None else single
        self.staging = self.parent / f".{whole.name}.partial"
        self.files = self.staging / "files"
        self.journal = self.staging / "journal"
        self._lock_path = self.staging / "lock"
        self._replaced = self.parent / f".{whole.name}.replaced"
        self._force = force
        self._lock = -1

    def claim(self) -> None:
        """Make the staging folder, lock it, and check the target. Raises InvalidInput or Refused."""
        if not os.path.isdir(self.parent):
            folder = printable(self.parent, 400)
            raise InvalidInput(f"{folder} is not an existing folder", f"create it first: mkdir -p {folder}")
        found = True
        try:
            found = self._take_lock()
            self._recover()
            self._check_target()
        except BaseException as error:
            self.leave(keep=found)
            if isinstance(error, OSError):
                raise self._unwritable(self.target, error) from error
            raise

    def clear(self) -> None:
        """Empty the staging folder, but for the lock. Links are removed, never followed."""
        for entry in os.scandir(self.staging):
            if entry.name == self._lock_path.name:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)

    def publish(self, name: str) -> None:
        """Move the finished output to the target and make that last. `name` is the file of a single-file output."""
        try:
            standing = self._check_target()
            if self.single:
                os.replace(self.files / name, self.target)
            elif standing:
                self._exchange()
            else:
                os.rename(self.files, self.target)
            sync_folder(self.parent)
        except OSError as error:
            fact = f"{printable(self.target, 400)}: cannot be put in place: {(error.strerror or str(error)).lower()}"
            hint = f"the finished output waits in {printable(self.files, 400)}; the same command publishes it"
            raise Failed(fact, hint) from error
        self._drop_replaced()

    def leave(self, keep: bool) -> None:
        """Let go of the lock, with the staging folder kept for a later run or removed. May be called again."""
        if self._lock < 0:
            return
        try:
            if not keep:
                # what cannot be removed now is cleared by the next run; it must not hide the error that led here
                with contextlib.suppress(OSError):
                    self.clear()
                    # last, so that a staging folder with anything in it is always a locked one
                    self._lock_path.unlink()
                    self.staging.rmdir()
        finally:
            fd, self._lock = self._lock, -1
            # closing is not enough while a forked child holds a copy
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _take_lock(self) -> bool:
        """Lock the staging folder; whether it was there before."""
        found = not self._make_staging()
        while True:
            try:
                fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                # its holder has just finished and removed the folder
                found = not self._make_staging()
                continue
            except OSError as error:
                raise self._unwritable(self.staging, error) from error
            try:
                self._flock(fd)
                if self._is_current(fd):
                    self._lock = fd
                    os.ftruncate(fd, os.pwrite(fd, _holder(), 0))
                    return found
            finally:
                if self._lock < 0:
                    os.close(fd)

    def _is_current(self, fd: int) -> bool:
        """Whether `fd` is still the lock: its holder may have removed it since it was opened."""
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self._lock_path))
        except FileNotFoundError:
            return False

    def _make_staging(self) -> bool:
        try:
            self.staging.mkdir()
        except FileExistsError:
            name = printable(self.staging, 400)
            if self.staging.is_symlink() or not self.staging.is_dir():
                raise Refused(f"{name} is in the way", "the output is staged there: remove it") from None
            # one look, as another writer may be making or removing the folder: the lock comes first and goes last
            entries = os.listdir(self.staging)
            if entries and self._lock_path.name not in entries:
                raise Refused(f"{name} exists and is not a staging folder", "move it elsewhere") from None
            return False
        except OSError as error:
            raise self._unwritable(self.parent, error) from error
        return True

    def _flock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 300, 0).decode(errors="replace").strip() or "another process"
            fact = f"{printable(self.target, 400)} is being written by {printable(holder, 300)}"
            raise Refused(fact, "wait for it, stop it, or choose another output") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            fact = f"{printable(self.staging, 400)} cannot be locked: {reason}"
            raise Failed(fact, "choose an output on a file system that has locks") from error

    def _unwritable(self, folder: Path, error: OSError) -> Refused:
        reason = (error.strerror or str(error)).lower()
        return Refused(f"{printable(folder, 400)} cannot be written to: {reason}", "choose another output folder")

    def _recover(self) -> None:
        """Finish what a run that died between the two renames left: the old output goes back to its place."""
        if self.single or not os.path.lexists(self._replaced):
            return
        if self._replaced.is_symlink() or not self._replaced.is_dir():
            name = printable(self._replaced, 400)
            raise Refused(f"{name} is in the way", "the old output is kept there while it is replaced: remove it")
        if self._is_free():
            os.rename(self._replaced, self.target)
            sync_folder(self.parent)
        else:
            self._drop_replaced()

    def _is_free(self) -> bool:
        """Whether the target is absent or an empty folder, which a rename replaces in one step."""
        try:
            mode = os.lstat(self.target).st_mode
        except FileNotFoundError:
            return True
        return not self.single and stat.S_ISDIR(mode) and not any(self.target.iterdir())

    def _check_target(self) -> bool:
        """Whether something stands at the target that is to be replaced. Refused when that may not be."""
        if self._is_free():
            return False
        name = printable(self.target, 400)
        mode = os.lstat(self.target).st_mode
        if stat.S_ISLNK(mode):
            raise Refused(f"{name} is a symbolic link", "give the path it points to, or remove the link")
        if self.single and not stat.S_ISREG(mode):
            raise Refused(f"{name} exists and is not a regular file", "choose another name")
        if not self.single and not stat.S_ISDIR(mode):
            hint = "choose another name; a path ending in .safetensors writes a single file"
            raise Refused(f"{name} is a file, and the output is a folder", hint)
        if not self._force:
            raise Refused(f"{name} already exists", "--force replaces it")
        if not self.single:
            self._check_replaceable(name)
        return True

    def _check_replaceable(self, name: str) -> None:
        """Force deletes a whole folder: only one that holds a model, and nothing that lives is inside it."""
        if os.path.ismount(self.target):
            raise Refused(f"{name} is a mount point and cannot be replaced", "choose a folder inside it")
        for place in (os.path.realpath("."), os.path.realpath(os.path.expanduser("~"))):
            if Path(place).is_relative_to(self.target):
                raise Refused(f"{name} holds {printable(place, 400)} and is not replaced", "choose another output")
        if not any(any(self.target.glob(pattern)) for pattern in _MODEL_FILES):
            hint = "if it may go, remove it yourself; or choose another output"
            raise Refused(f"{name} holds no model and is not replaced, --force or not", hint)

    def _exchange(self) -> None:
        os.rename(self.target, self._replaced)
        try:
            os.rename(self.files, self.target)
        except BaseException:
            # an interrupt can come after the rename was done: then there is nothing to put back
            if self._is_free():
                os.rename(self._replaced, self.target)
            raise

    def _drop_replaced(self) -> None:
        if self.single or not os.path.lexists(self._replaced):
            return
        try:
            shutil.rmtree(self._replaced)
        except OSError as error:
            fact = f"{printable(self._replaced, 400)}: the replaced output cannot be removed: {error.strerror}"
            raise Failed(fact, "the new one is in place; remove the old one yourself") from error


def _holder() -> bytes:
    return f"process {os.getpid()} on host {socket.gethostname()}\n".encode()
