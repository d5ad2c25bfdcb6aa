"""Whether the files of a merge, in a folder or on the Hub, are those that its merge.json tells of.

Of any other folder whose files something tells of, such as a generation.json, the same: `verify_outputs`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paramsmith.errors import InvalidInput, printable
from paramsmith.hashing import sha256_of
from paramsmith.hub import Reference, Snapshot, snapshot
from paramsmith.hubcache import has_size, snapshot_folder
from paramsmith.inputs import place
from paramsmith.lineage import (
    DESCRIPTIVE,
    MAX_BYTES,
    NAME,
    RECIPE,
    FileRecord,
    Lineage,
    lineage_of,
    paired,
    read_lineage,
)
from paramsmith.progress import Progress
from paramsmith.recipe import load_recipe
from paramsmith.weightfiles import PICKLES

Status = Literal["ok", "differs", "missing", "extra", "not here"]
# What a loader may take for the model, or run: no harmless addition to it.
_LOADED = (*PICKLES, ".safetensors", ".json", ".py", ".so", ".gguf", ".h5", ".msgpack", ".onnx")
_MOST_RECIPE = 1_000_000


@dataclass(frozen=True, slots=True)
class Checked:
    """One file, held against the lineage."""

    name: str
    status: Status

    @property
    def wrong(self) -> bool:
        """Whether the result is not what was described; a text beside it, or a file that cannot be seen, is no harm."""
        return self.status not in ("ok", "not here") and (self.status != "extra" or self.name.lower().endswith(_LOADED))


def verify_folder(folder: Path, progress: Progress | None = None) -> list[Checked]:
    """Hash every file of a merged folder. InvalidInput when merge.json is absent, unreadable or without hashes."""
    lineage, recipe = lineage_of(folder), folder / RECIPE
    status = _recipe_status(recipe if recipe.exists() else None, lineage)
    return verify_outputs(folder, lineage.outputs, NAME, status, progress)


def verify_outputs(
    folder: Path,
    outputs: Mapping[str, FileRecord],
    record: str,
    recipe: Checked | None = None,
    progress: Progress | None = None,
) -> list[Checked]:
    """Hash every file of a folder and compare with `outputs`, which its file `record` tells of.

    InvalidInput when that has no hashes.
    """
    wanted = _hashes(outputs, place(folder), f"paramsmith card {printable(folder)}", record)
    present = {name: folder / name for name in files_in(folder) if name != record}
    right = {n: p for n, p in present.items() if n in wanted and has_size(p, outputs[n].size)}
    hashed = sha256_of(right.values(), progress)
    found = {name: hashed[right[name]] if name in right else "" for name in present if name in wanted}
    return _compared(wanted, found, present, recipe)


def verify_repository(
    reference: Reference, *, read: bool = False, progress: Progress | None = None
) -> tuple[list[Checked], tuple[str, ...]]:
    """Hold what a repository lists against its merge.json; with `read`, fetch and hash the large files as well.

    Files that the listing has no sha256 of are small, and always fetched. Where the Hub is out of reach, what the cache
    has of the repository is hashed, and a warning says so.
    """
    from paramsmith.download import fetch

    held = snapshot(reference)
    lineage = remote_lineage(held)
    wanted = _hashes(lineage.outputs, str(held), "the files were pushed without: paramsmith card, then push again")
    found = published(held, lineage, read=read, progress=progress)
    recipe = held.files.get(RECIPE)
    path = None
    if recipe is not None and recipe.size <= _MOST_RECIPE:
        path = fetch(held, [RECIPE])[RECIPE] if held.complete else in_cache(held, RECIPE)
    checked = _compared(wanted, found, held.files, _recipe_status(path, lineage))
    if held.complete:
        return checked, ()
    return [replace(c, status="not here") if c.name not in held.files else c for c in checked], (unreached(held),)


def published(
    held: Snapshot, lineage: Lineage, *, read: bool = False, progress: Progress | None = None
) -> dict[str, str]:
    """The sha256 of what a repository holds of the files that a lineage tells of; "" for one of another size.

    As the Hub lists it, or, with `read` or of small files, of what it sends. Of a snapshot that is not complete, of
    what is in the cache: what the cache calls a file says nothing about what is in it.
    """
    from paramsmith.download import fetch

    listed = {name: file for name, file in held.files.items() if name in lineage.outputs}
    same = {name: file for name, file in listed.items() if file.size == lineage.outputs[name].size}
    if held.complete:
        found = {name: same[name].sha256 or "" if name in same else "" for name in listed}
        again = {n for n, file in same.items() if read and file.sha256 == lineage.outputs[n].sha256}
        here = fetch(held, [n for n, file in same.items() if file.sha256 is None or n in again], progress)
    else:
        found, here = dict.fromkeys(listed, ""), {name: in_cache(held, name) for name in same}
    hashed = sha256_of(here.values(), None if held.complete else progress)
    return found | {name: hashed[path] for name, path in here.items()}


def in_cache(held: Snapshot, name: str) -> Path:
    """Where the cache has a file that a snapshot which is not complete tells of."""
    return snapshot_folder(held.repo, held.commit) / name


def unreached(held: Snapshot) -> str:
    """The warning that goes with a snapshot that is not complete."""
    return f"{held}: the hub was not reached; only what is in the cache was checked"


def remote_lineage(held: Snapshot) -> Lineage:
    """The merge.json of a repository. InvalidInput where there is none, or one that no merge writes."""
    from paramsmith.download import fetch

    file = held.files.get(NAME)
    if file is None and not held.complete:
        fact = f"{held}: merge.json is not in the cache, and the hub was not reached"
        raise InvalidInput(fact, "try again with the network")
    if file is None:
        raise InvalidInput(f"{held}: holds no merge.json", "only what paramsmith push has sent can be checked")
    if file.size > MAX_BYTES:
        raise InvalidInput(f"{held}: merge.json is {file.size:,} bytes long; at most {MAX_BYTES:,} are read")
    path = fetch(held, [NAME])[NAME] if held.complete else in_cache(held, NAME)
    return read_lineage(path, f"{held}: {NAME}")


def files_in(folder: Path) -> Iterator[str]:
    """The files of a folder and its subfolders that are part of the result, by name; hidden ones are not."""
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            inner = (Path(home) / name).relative_to(folder).as_posix()
            if not name.startswith(".") and inner not in DESCRIPTIVE:
                yield inner


def _hashes(outputs: Mapping[str, FileRecord], where: str, hint: str, record: str = NAME) -> dict[str, str]:
    known = {name: file.sha256 for name, file in outputs.items() if file.sha256}
    if not known or len(known) < len(outputs):
        lacking = next((name for name in outputs if name not in known), "any file")
        raise InvalidInput(f"{where}: {record} has no hash of {printable(lacking)}", hint)
    return known


def _compared(
    wanted: Mapping[str, str], found: Mapping[str, str], present: Collection[str], recipe: Checked | None
) -> list[Checked]:
    listed = []
    for name, sha256 in wanted.items():
        status: Status = "missing" if name not in present else "ok" if found[name] == sha256 else "differs"
        listed.append(Checked(name, status))
    extra = sorted(n for n in present if n not in wanted and n not in DESCRIPTIVE and not n.startswith("."))
    return [*listed, *([recipe] if recipe else []), *(Checked(name, "extra") for name in extra)]


def _recipe_status(path: Path | None, lineage: Lineage) -> Checked:
    """recipe.yaml is right when it says what merge.json does, by whatever names."""
    if path is None:
        return Checked(RECIPE, "missing")
    try:
        paired(load_recipe(path), lineage, RECIPE)
    except InvalidInput:
        return Checked(RECIPE, "differs")
    return Checked(RECIPE, "ok")
