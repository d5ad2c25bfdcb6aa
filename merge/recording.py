"""The lineage of a merge: from open headers while it runs, and with every hash once somebody asks for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from paramsmith import __version__
from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.hashing import sha256_of
from paramsmith.header import parse_header
from paramsmith.hub import SCHEME, Reference
from paramsmith.inputs import open_regular, place
from paramsmith.lineage import (
    RECIPE,
    FileRecord,
    Input,
    Lineage,
    Role,
    cached_reference,
    inside,
    local_names,
    paired,
    plain,
    referred,
    renamed,
    without_paths,
)
from paramsmith.progress import Progress
from paramsmith.recipe import load_recipe
from paramsmith.shards import INDEX_NAME, Layout
from paramsmith.statistics import Statistics
from paramsmith.verifying import PICKLES, files_in

from .outcome import layout_of

if TYPE_CHECKING:
    from .job import Job
    from .passes import Setup

_MOST_WARNINGS = 1000


def recorded(job: Job, setup: Setup, warnings: Sequence[str], layout: Layout | None = None) -> Lineage:
    """What can be told of a merge while its inputs are open, without reading them again. `layout`: its output files."""
    found = referred(job.recipe)
    opened: dict[str, Checkpoint | Statistics] = {s.label: s for s in job.statistics}
    everyone = [*job.models, *([job.base] if job.base else [])]
    opened |= {model.label: model for model in everyone if isinstance(model, Checkpoint)}
    local = [text for _, text in found if Reference.parse(text) is None]
    names = dict(zip(local, local_names(local), strict=True))
    inputs = tuple(_input(role, text, names.get(text, text), opened.get(text)) for role, text in found)
    texts = {old: each.text for old, each in zip(found, inputs, strict=True)}
    labels = {text: each.reference for (_, text), each in zip(found, inputs, strict=True)}
    told = [without_paths(warning, labels) for warning in warnings[:_MOST_WARNINGS]]
    if len(warnings) > _MOST_WARNINGS:
        told.append(f"and {len(warnings) - _MOST_WARNINGS:,} more")
    return Lineage(
        paramsmith=__version__,
        torch=torch.__version__,
        method=job.method.name,
        arithmetic="compiled" if setup.compiled else "eager",
        device=setup.device.type,
        seed=job.recipe.seed,
        recipe=plain(renamed(job.recipe, texts)),
        warnings=tuple(told),
        inputs=inputs,
        outputs=_planned(layout or layout_of(job, Path("model"))),
    )


def completed(lineage: Lineage, folder: Path, progress: Progress | None = None) -> tuple[Lineage, tuple[str, ...]]:
    """The lineage with the hash of every input file and of every file of the merged folder; and warnings.

    InvalidInput names a file that is not what it was. The hashes of an input that is gone stay unknown, with a warning.
    """
    recipe = folder / RECIPE
    if not recipe.exists():
        raise InvalidInput(f"{place(folder)}: holds no {RECIPE}", "paramsmith merge writes it beside the weights")
    texts = paired(load_recipe(recipe), lineage, place(recipe))
    warnings: list[str] = []
    wanted: dict[tuple[int, str], Path] = {}
    for number, (each, text) in enumerate(zip(lineage.inputs, texts, strict=True)):
        here = files_of(each, text)
        gone = [name for name, path in here.items() if not path.exists()]
        if gone:
            named = printable(each.reference if len(gone) == len(here) else f"{each.reference}/{gone[0]}")
            warnings.append(f"{named} is no longer there: its hash stays unknown")
        for name, path in here.items():
            if name not in gone:
                _check(path, each.files[name])
                wanted[number, name] = path
    made = _made(lineage, folder)
    unknown = {key: path for key, path in wanted.items() if lineage.inputs[key[0]].files[key[1]].sha256 is None}
    hashed = sha256_of([*unknown.values(), *made.values()], progress)
    known = {key: hashed[path] for key, path in unknown.items()}
    outputs = {name: _hashed(lineage.outputs.get(name), path, hashed[path]) for name, path in made.items()}
    inputs = tuple(
        _with(each, {n: h for (i, n), h in known.items() if i == at}) for at, each in enumerate(lineage.inputs)
    )
    return lineage.model_copy(update={"inputs": inputs, "outputs": outputs}), tuple(warnings)


def files_of(each: Input, text: str) -> dict[str, Path]:
    """Where the files of an input are that can be checked here: all of a local one; of the Hub what has no hash yet."""
    if Reference.parse(text) is None:
        root = Path(text)
        alone = root.suffix == ".safetensors" if not root.exists() else root.is_file()
        return {name: root if alone else root / name for name in each.files}
    unknown = [name for name, file in each.files.items() if file.sha256 is None]
    if not unknown or each.hub is None:
        return {}
    from paramsmith.download import fetch
    from paramsmith.hub import snapshot

    found = fetch(snapshot(each.hub), [each.remote(name) for name in unknown])
    return {name: found[each.remote(name)] for name in unknown}


def _input(role: Role, text: str, name: str, opened: Checkpoint | Statistics | None) -> Input:
    found = opened.pinned if opened is not None else _pinned(text)
    hub = Reference.parse(SCHEME + found.removeprefix(SCHEME)) if found else None
    files = _files(opened) if opened is not None else _alone(text, hub)
    if hub is not None:
        return Input(role=role, reference=text, repo=hub.repo, commit=hub.commit, path=hub.path, files=files)
    cached = cached_reference(Path(text))
    if cached is None:
        return Input(role=role, reference=name, files=files)
    known = {n: _known(Path(text), n, file) for n, file in files.items()}
    shown = str(cached)
    return Input(role=role, reference=shown, repo=cached.repo, commit=cached.commit, path=cached.path, files=known)


def _files(opened: Checkpoint | Statistics) -> dict[str, FileRecord]:
    """What is known of the files without reading them: their headers were."""
    found: dict[str, FileRecord] = {}
    for name, said in opened.fingerprint().items():
        if isinstance(said, dict):
            found[name] = FileRecord(size=said["size"], header=said.get("header"), sha256=said.get("sha256"))
        elif isinstance(opened, Checkpoint) and opened.config is not None:
            found[name] = FileRecord(size=opened.config.path.stat().st_size, sha256=str(said))
    return dict(sorted(found.items()))


def _alone(text: str, hub: Reference | None) -> dict[str, FileRecord]:
    """Coefficients: one small file, hashed at once."""
    path = Path(text)
    if hub is not None:
        from paramsmith.download import fetch
        from paramsmith.hub import snapshot

        path = fetch(snapshot(hub), [hub.path])[hub.path]
    name = hub.path.rpartition("/")[2] if hub else path.name
    return {name: FileRecord(size=path.stat().st_size, sha256=sha256_of([path])[path])}


def _pinned(text: str) -> str | None:
    from paramsmith.hub import snapshot

    reference = Reference.parse(text)
    return None if reference is None else str(reference.at(reference.commit or snapshot(reference).commit))


def _known(root: Path, name: str, record: FileRecord) -> FileRecord:
    """A file of the Hub's cache: its link leads to what is named by its hash, if it is a large one."""
    path = root / name if root.is_dir() else root
    blob = path.readlink().name if path.is_symlink() else ""
    return record if len(blob) != 64 or record.sha256 else record.model_copy(update={"sha256": blob})


def _planned(layout: Layout) -> dict[str, FileRecord]:
    found = {
        file.name: FileRecord(size=file.size, header=hashlib.sha256(file.header[8:]).hexdigest())
        for file in layout.files
    }
    if layout.index is not None:
        digest = hashlib.sha256(layout.index).hexdigest()
        found[INDEX_NAME] = FileRecord(size=len(layout.index), sha256=digest)
    return found


def _made(lineage: Lineage, folder: Path) -> dict[str, Path]:
    """The files of the merged folder; InvalidInput when one is missing, or another than was written."""
    found: dict[str, Path] = {}
    for name in files_in(folder):
        if name not in lineage.outputs and not _belongs(folder, name):
            continue
        try:
            found[inside(name)] = folder / name
        except ValueError as problem:
            raise InvalidInput(f"{place(folder)}: {problem}", "rename it, or remove it") from None
    for name, record in lineage.outputs.items():
        if name not in found:
            raise InvalidInput(f"{place(folder / name)}: is missing", "run the merge again")
        _check(found[name], record, "it is not what the merge wrote: run the merge again")
    return found


def _belongs(folder: Path, name: str) -> bool:
    """Whether a file that the merge did not write may be published with it, and so is described with it."""
    path = folder / name
    inner = path.resolve().is_relative_to(folder.resolve()) and name.count("/") <= 1
    return inner and path.is_file() and path.suffix.lower() not in PICKLES


def _check(path: Path, record: FileRecord, hint: str = "the lineage is about what it was: run the merge again") -> None:
    """InvalidInput when a file's size, or its header, is not what was recorded."""
    fd, status = open_regular(path)
    try:
        same = status.st_size == record.size
        same = same and (record.header is None or parse_header(path, fd).digest == record.header)
    finally:
        os.close(fd)
    if same and record.sha256 is not None and record.header is None and path.suffix == ".json":
        same = sha256_of([path])[path] == record.sha256  # small enough to be read every time
    if not same:
        raise InvalidInput(f"{place(path)}: has changed since the merge", hint)


def _hashed(record: FileRecord | None, path: Path, sha256: str) -> FileRecord:
    if record is None:
        return FileRecord(size=path.stat().st_size, sha256=sha256)
    if record.sha256 not in (None, sha256):
        raise InvalidInput(f"{place(path)}: has changed since it was described", "see: paramsmith verify")
    return record.model_copy(update={"sha256": sha256})


def _with(each: Input, hashes: Mapping[str, str]) -> Input:
    files = {n: f.model_copy(update={"sha256": hashes[n]}) if n in hashes else f for n, f in each.files.items()}
    return each.model_copy(update={"files": files})
