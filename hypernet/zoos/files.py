"""Where the networks of a zoo lie: in its folder, or on the Hub, from which they are fetched into its cache, verified.

`hf://user/repo`, `hf://user/repo@revision` and `hf://user/repo@revision/file.safetensors` name networks of the Hub. A
folder or a repository of an adapter, which has no whole model, stands for its `adapter_model.safetensors`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.errors import GenerateWarning, InvalidInput, ParamsmithError, printable
from paramsmith.hub import SCHEME, Reference, Snapshot
from paramsmith.hubcache import snapshot_folder
from paramsmith.progress import Progress, part_of

from .index import Entry, within

if TYPE_CHECKING:
    from paramsmith.remote import RemoteFolder

ADAPTER = "adapter_model.safetensors"
_WHOLE = ("model.safetensors", "model.safetensors.index.json")
_BESIDE = "config.json"


@dataclass(frozen=True)
class Place:
    """What to open. `pinned`: the path that the index may have for it, of the Hub with the commit that was found.

    `folder`: the cache's own, which no message shows; None for what lies in the zoo.
    """

    path: Path
    pinned: str
    folder: Path | None = None


def on_hub(path: str) -> bool:
    """Whether a path of an index names something of the Hub."""
    return path.startswith(SCHEME)


def places_of(folder: Path, entries: Iterable[Entry], progress: Progress | None = None) -> dict[str, Place]:
    """Where the file or folder of each path lies; what is on the Hub is fetched, once all of it was found to be there.

    `progress` counts bytes that come. InvalidInput or Failed names the entry that has no place.
    """
    paths = list(dict.fromkeys(entry.path for entry in entries))
    found = {path: Place(_adapter_of(within(folder, path)), path) for path in paths if not on_hub(path)}
    coming = {path: _named(path) for path in paths if on_hub(path)}
    if coming:
        found.update(_fetched(coming, progress))
    return found


def told_as(problem: ParamsmithError, path: str, at: Place) -> ParamsmithError:
    """An error about a file of the cache as one about the entry that names it."""
    if at.folder is None:
        return problem
    problem.fact = _without_place(problem.fact, path, at.folder)
    if isinstance(problem, InvalidInput):
        problem.hint = "the repository holds no sound network: leave this line out of the index"
    return problem


@dataclass(frozen=True)
class _Coming:
    """The files of a network that a repository has: `names` there, all in `inner`; `path` is what to open."""

    reference: Reference
    snapshot: Snapshot
    names: tuple[str, ...]
    path: str

    @property
    def at(self) -> Place:
        """Where they will be."""
        home = snapshot_folder(self.snapshot.repo, self.snapshot.commit)
        pinned = str(self.reference.at(self.snapshot.commit)).removeprefix(SCHEME)
        return Place(home / self.path, SCHEME + pinned, home)


def _fetched(coming: Mapping[str, _Coming], progress: Progress | None) -> dict[str, Place]:
    from paramsmith.download import fetch, missing_bytes, remember_revision

    sizes = {path: missing_bytes(each.snapshot, each.names) for path, each in coming.items()}
    before, total = 0, sum(sizes.values())
    for path, each in coming.items():
        try:
            fetch(each.snapshot, each.names, part_of(progress, before, total))
        except ParamsmithError as problem:
            raise _about(problem, path) from None
        remember_revision(each.reference, each.snapshot)
        before += sizes[path]
    return {path: each.at for path, each in coming.items()}


def _named(path: str) -> _Coming:
    """What a repository has for a path. InvalidInput where that is no network, Failed where the Hub cannot be asked."""
    from paramsmith.remote import RemoteFolder

    reference = Reference.parse(path)
    if reference is None:
        raise ValueError(f"{path} names nothing of the Hub")
    try:
        with closing(RemoteFolder(reference)) as remote:
            return _held(reference, remote, path)
    except ParamsmithError as problem:
        raise _about(problem, path) from None


def _held(reference: Reference, remote: RemoteFolder, path: str) -> _Coming:
    from paramsmith.weightfiles import find_weights

    for text in remote.warnings:
        warnings.warn(GenerateWarning(text), stacklevel=2)
    try:
        found = find_weights(remote.path if remote.path.is_file() else _adapter_of(remote.path))
    except ParamsmithError as problem:
        problem.fact = _without_place(problem.fact, path, remote.folder)
        raise
    names = [file.name for file in found.files] + ([] if found.index is None else [found.index.name])
    whole = found.folder is not None and _BESIDE in remote.names
    return _coming(reference, remote.snapshot, [*names, *([_BESIDE] if whole else [])], found.folder is None)


def _coming(reference: Reference, snapshot: Snapshot, names: list[str], single: bool) -> _Coming:
    inner = reference.path.rstrip("/")
    if inner in snapshot.files:
        inner = inner.rpartition("/")[0]
    there = tuple(f"{inner}/{name}" if inner else name for name in names)
    missing = next((name for name in there if name not in snapshot.files), None)
    if missing is not None:
        raise InvalidInput(f"there is no {printable(missing)}, which the index names", "the upload is not complete")
    return _Coming(reference, snapshot, there, there[0] if single else inner)


def _adapter_of(path: Path) -> Path:
    """The one file of an adapter's folder; else the path as it is."""
    if not os.path.isdir(path):  # False, too, for a name that no file can have
        return path
    names = set(os.listdir(path))
    return path / ADAPTER if ADAPTER in names and not names & set(_WHOLE) else path


def _about(problem: ParamsmithError, path: str) -> ParamsmithError:
    """The same, with the entry in it."""
    if path.removeprefix(SCHEME) not in problem.fact:
        problem.fact = f"{printable(path, 500)}: {problem.fact}"
    return problem


def _without_place(text: str, path: str, folder: Path) -> str:
    shown = printable(path, 500)
    return text.replace(f"{folder}{os.sep}", f"{shown}: ").replace(str(folder), shown)
