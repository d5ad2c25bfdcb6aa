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
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hashing import sha256_of
from paramsmith.header import parse_header
from paramsmith.hub import SCHEME, Reference
from paramsmith.hubcache import snapshot_folder
from paramsmith.inputs import open_regular, place
from paramsmith.lineage import (
    NAME,
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
from paramsmith.verifying import files_in
from paramsmith.weightfiles import PICKLES

from .outcome import layout_of

if TYPE_CHECKING:
    from .job import Job
    from .passes import Setup

_MOST_WARNINGS = 1000
_LATE = "{} is newer than the merge; it is described as it is now"


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

    InvalidInput names a file that is not what it was; Failed one of the Hub whose copy in the cache, which was merged,
    is damaged. The hashes of an input that is gone or newer than the merge stay unknown, with a warning.
    """
    recipe = folder / RECIPE
    if not recipe.exists():
        raise InvalidInput(f"{place(folder)}: holds no {RECIPE}", "paramsmith merge writes it beside the weights")
    texts = paired(load_recipe(recipe), lineage, place(recipe))
    merged_at = (folder / NAME).stat().st_mtime_ns
    warnings: list[str] = []
    late: list[str] = []
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
        unknown = {n: p for n, p in here.items() if n not in gone and each.files[n].sha256 is None}
        newer = {} if each.hub else {n: t for n, p in unknown.items() if (t := _newer(lineage, each, n, p, merged_at))}
        late += newer.values()
        wanted |= {(number, name): path for name, path in unknown.items() if name not in newer}
    held, made = _held(lineage), _made(lineage, folder)
    hashed = sha256_of([*wanted.values(), *held, *made.values()], progress)
    _check_held(held, hashed)
    late += [_LATE.format(printable(n)) for n, p in made.items() if _is_late(lineage.outputs.get(n), p, merged_at)]
    known = {key: hashed[path] for key, path in wanted.items()}
    outputs = {name: _hashed(lineage.outputs.get(name), path, hashed[path]) for name, path in made.items()}
    inputs = tuple(
        _with(each, {n: h for (i, n), h in known.items() if i == at}) for at, each in enumerate(lineage.inputs)
    )
    # what was late stands in the lineage from now on, as merge.json will be newer than everything
    said = (*lineage.warnings, *(each for each in late if each not in lineage.warnings))
    done = lineage.model_copy(update={"inputs": inputs, "outputs": outputs, "warnings": said})
    return done, (*warnings, *late)


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


def _newer(lineage: Lineage, each: Input, name: str, path: Path, merged_at: int) -> str:
    """The warning about a file of an input that was written after the merge, which may not be what was merged."""
    told = f"{printable(each.reference if path.name == each.reference else f'{each.reference}/{name}')}"
    told += " is newer than the merge: its hash stays unknown"
    return told if told in lineage.warnings or path.stat().st_mtime_ns > merged_at else ""


def _is_late(record: FileRecord | None, path: Path, merged_at: int) -> bool:
    """Whether a weight file that nobody has described yet was written after the merge."""
    undescribed = record is not None and record.sha256 is None and path.suffix == ".safetensors"
    return undescribed and path.stat().st_mtime_ns > merged_at


def _held(lineage: Lineage) -> dict[Path, tuple[Input, str]]:
    """The files of inputs of the Hub whose hash is known and that lie in the cache: they were read from there."""
    found = {}
    for each in lineage.inputs:
        if each.hub is not None:
            home = snapshot_folder(each.hub.repo, str(each.hub.commit))
            paths = {home / each.remote(name): (each, name) for name, file in each.files.items() if file.sha256}
            found.update({path: of for path, of in paths.items() if path.is_file()})
    return found


def _check_held(held: Mapping[Path, tuple[Input, str]], hashed: Mapping[Path, str]) -> None:
    for path, (each, name) in held.items():
        if hashed[path] != each.files[name].sha256:
            fact = f"{each.hub and each.hub.repo}/{printable(each.remote(name))}: is damaged in the cache"
            raise Failed(fact, f"it is what was merged: remove it, then merge again: {place(path.resolve())}")


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
