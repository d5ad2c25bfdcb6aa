"""The index of a zoo: `zoo.jsonl`, a line a network, read as what a stranger may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import place
from paramsmith.weightfiles import PICKLES

INDEX = "zoo.jsonl"
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_MAX_INDEX = 1_000_000_000
_MAX_SEED = 2**63 - 1

Name = Annotated[str, Field(min_length=1, max_length=4000)]
Row = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Key = Annotated[str, Field(max_length=4000)] | int
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Metric = Annotated[float, Field(allow_inf_nan=False)]


class Stacked(BaseModel):
    """Tensors of a file, stacked along a new first axis in this order: one a class, say."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: Name
    tensors: tuple[Name, ...] = Field(min_length=1, max_length=1_000_000)


class OfRow(BaseModel):
    """One row of a tensor of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: Name
    tensor: Name
    row: Row


class Entry(BaseModel):
    """A line of zoo.jsonl. Only `path` is needed: in the folder, or hf://user/repo@revision, as `files` has it.

    `row`: of a file in which each tensor has a first axis of networks. `task`, `run`: networks of one task, or saved
    in one run, are never on both sides of a split. `episode` is the seed that the network's episode was drawn with,
    as one of `drawn`. `sha256` is of its weights: see `digest.digest_of`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: Name
    row: Row | None = None
    sha256: Digest | None = None
    task: Key | None = None
    run: Key | None = None
    step: Row | None = None
    seed: Annotated[int, Field(strict=True)] | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    condition: dict[str, object] | list[object] | float | None = None
    split: Split = "train"
    episode: Annotated[int, Field(ge=0, le=_MAX_SEED, strict=True)] | None = None
    drawn: Literal["train", "zoo", "test"] = "zoo"

    @property
    def label(self) -> str:
        """What messages call it: its path, and its row."""
        return self.path if self.row is None else f"{self.path}[{self.row}]"


def read_index(path: Path) -> Iterator[Entry]:
    """The entries, line by line. InvalidInput names the line that is wrong."""
    if not path.is_file():
        raise InvalidInput(f"{place(path)}: is no file", "it has a line a network")
    if path.stat().st_size > _MAX_INDEX:
        raise InvalidInput(f"{place(path)}: is larger than {_MAX_INDEX:,} bytes", "it has a line a network")
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _entry(path, number, line)


def index_bytes(entries: Iterable[Entry]) -> bytes:
    """The file that has these entries."""
    lines = (json.dumps(entry.model_dump(mode="json", exclude_defaults=True)) + "\n" for entry in entries)
    return "".join(lines).encode()


def found_in(folder: Path) -> Iterator[Entry]:
    """An entry for each checkpoint of a folder without an index, in the order of their names."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors*"))):
            yield Entry(path=path.name)


def pickles_in(folder: Path) -> list[str]:
    """What of a folder without an index could be a checkpoint, and is passed over: pickles, and folders of them."""
    found = []
    for path in sorted(folder.iterdir()):
        several = [path] if path.is_file() else path.glob("*model*") if path.is_dir() else ()
        if any(each.suffix.lower() in PICKLES for each in several) and not any(path.glob("*.safetensors*")):
            found.append(path.name)
    return found


def within(folder: Path, name: str) -> Path:
    """A path of the zoo. InvalidInput for one that leads out of it, or that is not there."""
    where, told, hint = place(folder / INDEX), printable(name), "use paths within it"
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        there = inside and bool(os.lstat(folder / name))
    except FileNotFoundError:
        hint = "a path is one in the folder of the zoo, or hf://user/repo@revision"
        raise InvalidInput(f"{where}: {told} does not exist", hint) from None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, links in a circle
        raise InvalidInput(f"{where}: {told} is no path", hint) from None
    if not there:
        raise InvalidInput(f"{where}: {told} lies outside the zoo", hint)
    return folder / name


def _entry(path: Path, number: int, line: str) -> Entry:
    try:
        return Entry.model_validate_json(line)
    except ValidationError as problem:
        error = problem.errors(include_url=False, include_input=False)[0]
        where = ".".join(printable(part, 60) for part in error["loc"][:3])
        told = f"{where}: {printable(error['msg'], 200)}" if where else printable(error["msg"], 200)
        fact = f"{place(path)}, line {number}: {told}"
        raise InvalidInput(fact, 'for example {"path": "a.safetensors"}') from None
