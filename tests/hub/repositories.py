"""Repositories that are just there: put into the stub's store, without a client."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.hub.hubstub import HubStub, git_blob_id, lfs_pointer


def publish(hub: HubStub, repo: str, files: Path | Mapping[str, bytes], *, private: bool = False) -> str:
    """Make a commit of these files, or of a folder's, on top of what there is; the commit."""
    store = hub.store
    found = store.repos.get(store.key("model", repo)) or store.create("model", repo, private, repo.partition("/")[0])
    head = found["branches"]["main"]
    tree = dict(found["commits"][head]["tree"])
    if isinstance(files, Path):
        files = {p.relative_to(files).as_posix(): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
    for name, data in files.items():
        tree[name] = _large(hub, data) if name.endswith(".safetensors") else _small(hub, data)
    return str(store.add_commit(found, "main", tree, "files", "", "alice", head))


def damage(hub: HubStub, repo: str, name: str, at: int = -1) -> None:
    """Flip one bit of a stored large file."""
    path = Path(hub.store.lfs_path(entry_of(hub, repo, name)["lfs"]))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    shutil.copy(path, path.with_suffix(".sound"))
    path.write_bytes(data)


def entry_of(hub: HubStub, repo: str, name: str) -> dict[str, str]:
    """What the tree of the main branch says of a file."""
    found = hub.store.repos[hub.store.key("model", repo)]
    entry: dict[str, str] = found["commits"][found["branches"]["main"]]["tree"][name]
    return entry


def sent(hub: HubStub, ending: str = "") -> int:
    """Bytes of files that the Hub and its storage have sent, of paths with that ending."""
    return sum(r.get("sent", 0) for r in hub.requests if r["path"].endswith(ending))


def _large(hub: HubStub, data: bytes) -> dict[str, object]:
    sha = hashlib.sha256(data).hexdigest()
    Path(hub.store.lfs_path(sha)).write_bytes(data)
    return {"oid": git_blob_id(lfs_pointer(sha, len(data))), "size": len(data), "lfs": sha, "xet": None}


def _small(hub: HubStub, data: bytes) -> dict[str, object]:
    return {"oid": hub.store.put_git(data), "size": len(data), "lfs": None, "xet": None}
