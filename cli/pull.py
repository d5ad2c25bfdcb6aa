"""`paramsmith pull`: files of the Hub into its cache, or into a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from paramsmith.errors import InvalidInput, printable

from .output import json_option, show_json, show_warning, size_text, wants_json

if TYPE_CHECKING:
    from paramsmith.destination import Destination
    from paramsmith.hub import Reference, Snapshot
    from paramsmith.progress import Progress

# What no model in safetensors needs: pickles and what may hold them, weights for other programs, code.
_PICKLES = ".bin .pt .pth .ckpt .pkl .pickle .h5 .hdf5 .msgpack .npy .npz .joblib .dill .mar .t7 .ot"
_OTHERS = (
    ".onnx .onnx_data .gguf .ggml .llamafile .tflite .mlmodel .pb .keras .engine .plan .nemo .xml .zip .tar .gz .7z"
)
_CODE = ".py .pyc .ipynb .sh .js .so .dll .exe"
_LEFT_OUT = frozenset(f"{_PICKLES} {_OTHERS} {_CODE}".split())
_WEIGHTS = frozenset(f"{_PICKLES} {_OTHERS}".split())


@click.command("pull", short_help="Fetch a model, or statistics, from the Hub.")
@click.argument("model", metavar="USER/NAME[@REVISION]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A folder of their own for the files.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only the files of this name; may be given again.")
@click.option("--all", "everything", is_flag=True, help="Pickles, other formats and code as well.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar; print the path alone.")
@json_option
def command(
    model: str, output: Path | None, include: tuple[str, ...], everything: bool, force: bool, quiet: bool
) -> None:
    """Fetch what a model, adapter, or other file of paramsmith needs from the Hub, verified; no code and no pickles.

    \b
    paramsmith pull user/name                              into the cache of the Hub
    paramsmith pull user/name@v1.0 -o DIR                  into a folder as well
    paramsmith pull hf://user/name/fisher.safetensors      a single file
    """
    reference = _reference(model)
    from paramsmith.download import fetch, missing_bytes, remember_revision
    from paramsmith.hub import snapshot
    from paramsmith.hubcache import snapshot_folder
    from paramsmith.progress import bar

    held = snapshot(reference)
    names = _chosen(reference, held, include, everything)
    coming = missing_bytes(held, names)
    with _destination(output, reference.path in names, force) as place, bar(not quiet) as progress:
        if place is not None:
            _check_room(place, held, names, coming)
        found = fetch(held, names, progress)
        remember_revision(reference, held)
        if place is not None:
            _publish(place, reference, held, names, progress)
    path = found.get(reference.path) or snapshot_folder(held.repo, held.commit) / reference.path
    _show(place.target if place else path, held, names, coming, quiet)


def _reference(text: str) -> Reference:
    from paramsmith.hub import Reference

    found = Reference.parse(text)
    if found is None:
        known = "is a local path" if Path(text).exists() else "is not the name of a repository"
        raise InvalidInput(f"{printable(text)}: {known}", "give user/name, user/name@revision or hf://user/name/file")
    return found


def _chosen(reference: Reference, held: Snapshot, include: Sequence[str], everything: bool) -> list[str]:
    """The names of the files to fetch, sorted; InvalidInput when there is none, or none of a name that was given."""
    if include and everything:
        raise InvalidInput("--all and --include exclude each other", "--include finds pickles and code as well")
    if reference.path in held.files:
        if include or everything:
            raise InvalidInput(f"{reference} is a single file", "leave --include and --all out")
        return [reference.path]
    start = f"{reference.path.rstrip('/')}/" if reference.path else ""
    inside = sorted(name for name in held.files if name.startswith(start))
    if not inside:
        raise InvalidInput(f"{held}: has no file or folder {printable(reference.path)}", "check the name")
    for pattern in include:
        if not any(fnmatchcase(name, pattern) for name in inside):
            raise InvalidInput(f"{held}: has no file {printable(pattern)}", "* stands for any part of a name")
    if include:
        return [name for name in inside if any(fnmatchcase(name, pattern) for pattern in include)]
    names = [name for name in inside if everything or PurePosixPath(name).suffix.lower() not in _LEFT_OUT]
    _check_complete(held, names)
    _warn_of_left_out(held, inside, names)
    return names


def _check_complete(held: Snapshot, names: Sequence[str]) -> None:
    """What the cache holds of a repository may be a part; an index tells what belongs to a model."""
    if held.complete:
        return
    from paramsmith.download import cached
    from paramsmith.inputs import read_json
    from paramsmith.weightfiles import INDEX_SUFFIX, MAX_INDEX

    show_warning(f"{held}: the hub was not reached, these are the files that the cache has of it")
    for name in names:
        path = cached(held, name) if name.endswith(INDEX_SUFFIX) else None
        listed = read_json(path, MAX_INDEX)[0].get("weight_map") if path else None
        for shard in sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else ():
            if f"{name.removesuffix(PurePosixPath(name).name)}{shard}" not in held.files:
                raise InvalidInput(f"{held}/{printable(shard)}: is not in the cache, and the hub was not reached")


def _warn_of_left_out(held: Snapshot, inside: Sequence[str], names: Sequence[str]) -> None:
    weights = [name for name in inside if PurePosixPath(name).suffix.lower() in _WEIGHTS]
    if weights and not any(name.endswith(".safetensors") for name in names):
        left = f"{printable(weights[0])}{f' and {len(weights) - 1} more' * (len(weights) > 1)}"
        show_warning(f"{held}: has no safetensors; {left} left out, --all takes them")
    if not names:
        raise InvalidInput(f"{held}: has nothing but pickles, other formats and code", "--all takes them")


@contextmanager
def _destination(output: Path | None, single: bool, force: bool) -> Iterator[Destination | None]:
    """The output's place, claimed before anything is downloaded, with an empty folder for its files."""
    if output is None:
        yield None
        return
    from paramsmith.destination import Destination

    place = Destination(output, force=force, single=single)
    place.claim()
    try:
        place.clear()
        place.files.mkdir()
        yield place
    finally:
        place.leave(keep=False)


def _check_room(place: Destination, held: Snapshot, names: Sequence[str], coming: int) -> None:
    """Refuse before downloading when the disk of the output is too small for the copy."""
    from paramsmith.disk import check_space
    from paramsmith.hubcache import existing_cache

    shared = existing_cache().stat().st_dev == place.staging.stat().st_dev
    check_space(place.parent, sum(held.files[name].size for name in names) + (coming if shared else 0))


def _publish(place: Destination, reference: Reference, held: Snapshot, names: Sequence[str], tell: Progress) -> None:
    """Copies, as a link to the cache would carry what is done to the output into it."""
    from paramsmith.disk import sync_folder
    from paramsmith.download import download

    done, total = 0, sum(held.files[name].size for name in names)
    for name in names:
        inside = place.target.name if place.single else name.removeprefix(reference.path).lstrip("/")
        target = place.files / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        download(held, name, target)
        done += held.files[name].size
        tell(done, total)
    sync_folder(place.files)
    place.publish(place.target.name)


def _show(path: Path, held: Snapshot, names: Sequence[str], coming: int, quiet: bool) -> None:
    files = [held.files[name] for name in names]
    if wants_json():
        return show_json(
            {
                "repo": held.repo,
                "commit": held.commit,
                "path": str(path),
                "files": [{"name": f.path, "bytes": f.size, "sha256": f.sha256} for f in files],
                "bytes": sum(file.size for file in files),
                "bytes_downloaded": coming,
            }
        )
    if quiet:
        return click.echo(printable(path, 2000))
    told = f"{len(files)} file{'s' * (len(files) != 1)}, {size_text(sum(file.size for file in files))}"
    return click.echo(f"{printable(path, 2000)}: {told}, {size_text(coming)} downloaded, {held.repo}@{held.commit}")
