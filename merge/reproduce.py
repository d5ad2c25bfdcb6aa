"""A merge made again from what its merge.json tells, and held against it byte by byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from paramsmith import __version__
from paramsmith.errors import InvalidInput, Refused, printable
from paramsmith.hashing import sha256_of
from paramsmith.hub import SCHEME, Reference, Snapshot, snapshot
from paramsmith.inputs import place
from paramsmith.lineage import RECIPE, Input, Lineage, lineage_of, paired, referred, renamed
from paramsmith.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from paramsmith.shards import INDEX_NAME
from paramsmith.verifying import published, remote_lineage, unreached

from .api import run
from .options import RunOptions
from .recording import files_of

Status = Literal["same", "different", "missing"]


@dataclass(frozen=True)
class Reproduced:
    """What came of it: every file with its status, and what might explain a difference."""

    files: tuple[tuple[str, Status], ...]
    warnings: tuple[str, ...]
    output: Path

    @property
    def same(self) -> bool:
        """Whether every file has the bytes it had."""
        return all(status == "same" for _, status in self.files)


def reproduce(
    merged: str, output: Path | None = None, *, keep: bool = False, options: RunOptions | None = None
) -> Reproduced:
    """Run a merge again, from a merged folder or a repository, and compare weights, config and companions.

    Of a repository, the bytes that it holds now are what the result must have, and what merge.json tells of them.
    The result goes to `output`, or to a folder `NAME.reproduced` here that is removed afterwards unless `keep`. Raises
    InvalidInput when an input is neither on the Hub nor at its path, or is not what it was.
    """
    lineage, texts, held = _source(merged)
    if not any(file.sha256 for name, file in lineage.outputs.items() if _made(name)):
        raise InvalidInput(f"{printable(merged)}: merge.json has no hashes", "write them first: paramsmith card OUT")
    recipe = _recipe(lineage, texts, merged, here=held is None)
    for each, text in zip(lineage.inputs, texts, strict=True):
        _check_input(each, text)
    there = published(held, lineage) if held else None
    target = _free(output or Path(f"{_name(merged)}.reproduced"))
    compiled: Literal["always", "never"] = "always" if lineage.arithmetic == "compiled" else "never"
    report = run(recipe, target, replace(options or RunOptions(), compile=compiled, device=lineage.device))
    try:
        files = _compared(lineage, target, there, complete=held is None or held.complete)
    finally:
        if output is None and not keep:
            shutil.rmtree(target)
    reached = [] if held is None or held.complete else [unreached(held)]
    return Reproduced(files, (*_versions(lineage), *reached, *report.warnings), target)


def _free(target: Path) -> Path:
    if os.path.lexists(target):
        raise Refused(f"{place(target)}: already exists", "remove it, or name another folder: -o DIR")
    if target.suffix == ".safetensors":
        raise InvalidInput(f"{place(target)}: the result is a folder", "name one without .safetensors: -o DIR")
    return target


def _source(merged: str) -> tuple[Lineage, list[str], Snapshot | None]:
    """The lineage, what each of its inputs is to be opened as, and the repository it is from."""
    reference = Reference.parse(merged)
    if reference is not None and reference.path:
        raise InvalidInput(f"{printable(merged)}: names a part of a repository", "give the whole: user/name@revision")
    if reference is not None:
        held = snapshot(reference)
        lineage = remote_lineage(held)
        # with the scheme, so that nothing here can be taken for what a stranger names
        return lineage, [SCHEME + each.text.removeprefix(SCHEME) for each in lineage.inputs], held
    lineage = lineage_of(Path(merged))
    recipe = Path(merged) / RECIPE
    if not recipe.exists():
        return lineage, [each.text for each in lineage.inputs], None
    texts = paired(load_recipe(recipe), lineage, place(recipe))
    here = [each.hub is None or Path(text).exists() for each, text in zip(lineage.inputs, texts, strict=True)]
    return lineage, [t if ok else each.text for each, t, ok in zip(lineage.inputs, texts, here, strict=True)], None


def _recipe(lineage: Lineage, texts: Sequence[str], merged: str, *, here: bool) -> Recipe:
    """The recipe of the lineage, checked as one that a user wrote, about inputs as they are called here.

    Paths count only where the lineage is from a folder `here`: a stranger's may name any file of this machine.
    """
    for each, text in zip(lineage.inputs, texts, strict=True):
        if each.hub is None and not (here and Path(text).is_absolute()):
            fact = f"{printable(merged)}: its input {printable(each.reference)} is not on the hub"
            raise InvalidInput(fact, "only whoever has it can make the merge again, from the folder it was made in")
    try:
        said = Recipe.model_validate(lineage.recipe)
        names = dict(zip(referred(said), texts, strict=True))
        text = dump_recipe(renamed(said, names))
    except ValueError:
        raise InvalidInput(f"{printable(merged)}: merge.json holds no recipe", "it was damaged, or made up") from None
    recipe = parse_recipe(text, f"the recipe of {merged}")
    if recipe.method != lineage.method:
        fact = f"{printable(merged)}: merge.json names the method {printable(lineage.method)}, its recipe another"
        raise InvalidInput(fact, "it was damaged, or made up")
    return recipe


def _check_input(each: Input, text: str) -> None:
    """InvalidInput when an input is not, to the byte, what it was, or cannot be told to be."""
    shown = printable(each.reference)
    if each.hub is not None and Reference.parse(text) is not None:
        listed = snapshot(each.hub).files
        for name, file in each.files.items():
            found = listed.get(each.remote(name))
            if found is None or (file.sha256 and found.sha256 not in (None, file.sha256)):
                raise InvalidInput(f"{shown}: {printable(name)} is not what it was", "the repository was rewritten")
        return
    here: Mapping[str, Path] = files_of(each, text)
    gone = next((path for path in here.values() if not path.exists()), None)
    if gone is not None:
        raise InvalidInput(f"{place(gone)}: is no longer there", "put the input back where it was")
    found_all = sha256_of(here.values())
    for name, path in here.items():
        if each.files[name].sha256 not in (None, found_all[path]):
            raise InvalidInput(f"{place(path)}: has changed since the merge", "put the input back as it was")


def _made(name: str) -> bool:
    """Whether a merge writes a file of that name itself."""
    return name.endswith(".safetensors") or name in (INDEX_NAME, "config.json")


def _compared(
    lineage: Lineage, target: Path, there: Mapping[str, str] | None, *, complete: bool
) -> tuple[tuple[str, Status], ...]:
    """Every file, held against the lineage and `there`, the hashes of what is published; None: that is the lineage.

    Of a repository that is not `complete`, a file may be somewhere else.
    """
    here = {name: target / name for name, file in lineage.outputs.items() if file.sha256 and (target / name).is_file()}
    found = sha256_of(here.values())
    listed: list[tuple[str, Status]] = []
    for name, file in lineage.outputs.items():
        if name in here and there is not None and name not in there and complete:
            listed.append((name, "missing"))
        elif name in here:
            same = found[here[name]] == file.sha256 == (there or {}).get(name, file.sha256)
            listed.append((name, "same" if same else "different"))
        elif _made(name) and file.sha256:
            listed.append((name, "missing"))
    return tuple(listed)


def _versions(lineage: Lineage) -> list[str]:
    pairs = (("paramsmith", lineage.paramsmith, __version__), ("torch", lineage.torch, torch.__version__))
    return [f"made with {what} {printable(then)}, run with {now}" for what, then, now in pairs if then != now]


def _name(merged: str) -> str:
    reference = Reference.parse(merged)
    return reference.repo.rpartition("/")[2] if reference else Path(merged).resolve().name
