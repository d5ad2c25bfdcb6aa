"""The Hub's cache, as every tool fills it: where a file of a commit lies, what is there, and giving it its name.

`blobs/<hash>` holds contents, `snapshots/<commit>/<name>` links to them, `refs/<revision>` holds a commit. Names and
hashes come from a server: none of them may lead out of the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from paramsmith.errors import InvalidInput, printable
from paramsmith.hub import MAIN, Reference, RemoteFile, Snapshot, cache_folder, check_path, repo_folder

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def cached(snapshot: Snapshot, name: str) -> Path | None:
    """The file in the cache, None when it is not there or has another size.

    Where the cache has the content from another commit, it gets its name in this one; on a cache that cannot be
    written to, it is returned under the name of its content.
    """
    file = listed(snapshot, name)
    path = _pointer(snapshot, name)
    if has_size(path, file.size):
        return path
    blob = blob_path(snapshot, file)
    if not has_size(blob, file.size):
        return None
    try:
        _link(blob, path)
    except OSError:
        return blob
    return path


def remember_revision(reference: Reference, snapshot: Snapshot) -> None:
    """Note in the cache which commit the revision means, so that it is found there without the network.

    A cache that cannot be written to stays as it is.
    """
    revision = reference.revision or MAIN
    if revision == snapshot.commit:
        return
    check_path(str(reference), revision)
    ref = repo_folder(snapshot.repo) / "refs" / revision
    with suppress(OSError):
        if ref.is_file() and ref.read_bytes() == snapshot.commit.encode():
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = ref.with_name(f"{ref.name}.{_mark()}.tmp")
        fresh.write_text(snapshot.commit)
        os.replace(fresh, ref)


def listed(snapshot: Snapshot, name: str) -> RemoteFile:
    """A file of the snapshot. InvalidInput for a name that it does not have, or that leads elsewhere."""
    check_path(str(snapshot), name)
    file = snapshot.files.get(name)
    if file is None:
        raise InvalidInput(f"{snapshot}/{name}: the repository has no such file", "check the name")
    return file


def blob_path(snapshot: Snapshot, file: RemoteFile) -> Path:
    """Where the content of a file belongs. InvalidInput for a hash that is none."""
    _check_hash(snapshot, file.etag)
    return repo_folder(snapshot.repo) / "blobs" / file.etag


def snapshot_folder(repo: str, commit: str) -> Path:
    """Where the cache has the files of a commit under their names."""
    return repo_folder(repo) / "snapshots" / commit


def existing_cache() -> Path:
    """The cache's folder, or, while it is not there, the nearest one above that is: the disk that it will be on."""
    cache = cache_folder()
    return next(folder for folder in (cache, *cache.parents) if folder.is_dir())


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file of that size."""
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def _pointer(snapshot: Snapshot, name: str) -> Path:
    _check_hash(snapshot, snapshot.commit)
    return snapshot_folder(snapshot.repo, snapshot.commit) / name


def _check_hash(snapshot: Snapshot, text: str) -> None:
    if not HASH.fullmatch(text):
        raise InvalidInput(f"{snapshot}: {printable(text)} is not a hash", "do not trust this hub")


def _link(blob: Path, path: Path) -> None:
    """Let `path` lead to the blob: a relative link, or a copy where there are no links. In one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = blob.with_name(f"{blob.name}.{_mark()}.tmp")
    fresh.unlink(missing_ok=True)
    try:
        try:
            fresh.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            shutil.copyfile(blob, fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _mark() -> str:
    """Tells what this thread makes from what others make at the same time."""
    return f"{os.getpid()}-{threading.get_ident()}"
