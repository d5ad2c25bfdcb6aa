"""A saved generator before it is loaded: everything in it is held against what a generator is; nothing in it runs.

    model_index.json                                      format, and which of two kinds of model: hypernetwork, sampler
    hypernetwork/config.json                              parts and their options, the target if it is always the same
    hypernetwork/diffusion_pytorch_model.safetensors      the tensors

Whoever made it decides nothing but options and numbers: classes and modules are ours, parts are those of the
registries, pickles are refused, and every tensor is compared with the header before memory is taken for it.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from paramsmith.errors import InvalidInput, printable
from paramsmith.hub import Reference
from paramsmith.hubcache import snapshot_folder
from paramsmith.inputs import place, read_json
from paramsmith.lineage import shallow
from paramsmith.progress import Progress
from paramsmith.tensorfiles import TensorFile
from paramsmith.weightfiles import PICKLES

from .kinds import HYPERNETWORK, KINDS, SAMPLER, Kind

INDEX = "model_index.json"
FORMAT = 1

_MAX_INDEX, _MAX_CONFIG = 1_000_000, 20_000_000
_PICKLES = (*PICKLES, ".npy", ".npz")
_OTHER_WEIGHTS = (".safetensors.index.json", ".flashpack")
_MADE = "paramsmith train makes one"

Word = Annotated[str, Field(max_length=200)]
Size = Annotated[int, Field(ge=0, le=10_000_000)]
M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _recordable(found: dict[str, object]) -> dict[str, object]:
    """The options, if they can be told of in JSON again; else ValueError."""
    json.dumps(shallow(found), allow_nan=False)
    return found


class Part(_Strict):
    """A part by name, with its options."""

    name: Word
    options: Annotated[dict[Word, object], AfterValidator(_recordable)] = Field(default_factory=dict)


class Config(_Strict):
    """What the config.json of every kind holds."""

    diffusers: Word = Field(alias="_diffusers_version")
    name_or_path: str = Field("", alias="_name_or_path", max_length=2000)
    width: int = Field(gt=0, le=65_536)
    encoder: Part
    condition: dict[Word, Annotated[list[Size], Field(max_length=8)]] = Field(max_length=100)
    preset: Part | None = None


class HypernetworkConfig(Config):
    """hypernetwork/config.json."""

    class_name: Literal["Hypernetwork"] = Field(alias="_class_name")
    decoder: Part
    base: Part
    scale: Part
    target: dict[str, object] | None = None


class SamplerConfig(Config):
    """sampler/config.json."""

    class_name: Literal["Sampler"] = Field(alias="_class_name")
    tokens: Annotated[dict[Word, object], AfterValidator(_recordable)]
    codec: Part
    prior: Part
    target: dict[str, object]


_CONFIGS: dict[str, type[Config]] = {HYPERNETWORK.name: HypernetworkConfig, SAMPLER.name: SamplerConfig}


class Index(_Strict):
    """model_index.json. `seconds`: how long the training took; `learned_from`: hashes of networks, in short."""

    class_name: Literal["Generator"] = Field(alias="_class_name")
    diffusers: Word = Field(alias="_diffusers_version")
    format: Literal[1]
    paramsmith: Word
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    learned_from: str | None = Field(None, max_length=100_000, pattern=r"^([0-9a-f]{16}( [0-9a-f]{16})*)?$")


@dataclass(frozen=True)
class Artifact:
    """A saved generator that was found sound. `sha256` has the hashes of its files that are known already."""

    folder: Path
    label: str
    index: Index
    kind: Kind
    config: Config
    repo: str | None = None
    commit: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """What it consists of."""
        return files_of(self.kind)


def open_artifact(reference: str | os.PathLike[str], progress: Progress | None = None) -> Artifact:
    """The generator in a folder, or of the Hub: fetched, verified, and checked. InvalidInput says what is wrong."""
    text = os.fspath(reference)
    named = Reference.parse(text)
    if named is None:
        return check_artifact(Path(text), text)
    return _fetched(named, text, progress)


def check_artifact(folder: Path, label: str) -> Artifact:
    """Hold the files of a generator's folder against each other. InvalidInput names the file; nothing is loaded."""
    if not folder.is_dir():
        told = "is a file, not the folder of a generator" if folder.exists() else "does not exist"
        raise InvalidInput(f"{place(folder)}: {told}", _MADE)
    if not os.path.lexists(folder / INDEX):
        raise InvalidInput(f"{place(folder)}: is no generator: it has no {INDEX}", _MADE)
    index, kind = _read_index(folder / INDEX)
    for name in files_of(kind):
        if not os.path.lexists(folder / name):
            raise _lacking(folder, name, kind)
    _refuse_others(folder, kind)
    config = _read_config(folder / kind.config, kind)
    _check_tensors(folder, kind, config)
    return Artifact(folder, label, index, kind, config)


def files_of(kind: Kind) -> tuple[str, ...]:
    """The files of a generator of a kind."""
    return INDEX, kind.config, kind.tensors


def _fetched(named: Reference, text: str, progress: Progress | None) -> Artifact:
    from paramsmith.download import fetch, remember_revision
    from paramsmith.hub import snapshot

    held = snapshot(named)
    inner = f"{named.path.rstrip('/')}/" if named.path else ""
    kind = next((kind for kind in KINDS.values() if inner + kind.config in held.files), HYPERNETWORK)
    for name in files_of(kind):
        if inner + name not in held.files:
            raise InvalidInput(f"{held}: is no generator: it has no {inner}{name}", _MADE)
    wanted = [inner + name for name in files_of(kind)]
    fetch(held, wanted, progress)
    remember_revision(named, held)
    folder = snapshot_folder(held.repo, held.commit) / inner
    found = check_artifact(folder, text)
    known = {name: sha for name in files_of(kind) if (sha := held.files[inner + name].sha256)}
    return Artifact(folder, text, found.index, found.kind, found.config, held.repo, held.commit, known)


def _lacking(folder: Path, name: str, kind: Kind) -> InvalidInput:
    pickled = [entry for entry in _names(folder / kind.name) if entry.lower().endswith(_PICKLES)]
    if name == kind.tensors and pickled:
        return _pickle(folder / kind.name / pickled[0])
    return InvalidInput(f"{place(folder)}: {name} is missing", "the generator is incomplete; fetch it again")


def _refuse_others(folder: Path, kind: Kind) -> None:
    """Beside the tensors nothing may lie that a loader could take in their place."""
    for name in _names(folder / kind.name):
        path = folder / kind.name / name
        if name.lower().endswith(_PICKLES):
            raise _pickle(path)
        if name.endswith(_OTHER_WEIGHTS):
            raise InvalidInput(f"{place(path)}: a generator has one file of tensors, {kind.tensors}", "remove this one")


def _pickle(path: Path) -> InvalidInput:
    fact = f"{place(path)}: is a pickle, which could run code when loaded; it was not opened"
    return InvalidInput(fact, "a generator holds safetensors alone: save_pretrained writes it so")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read_index(path: Path) -> tuple[Index, Kind]:
    """The index, and the kind of model that is there; of the other kind it may say null."""
    plain, _ = read_json(path, _MAX_INDEX)
    name, number = plain.get("_class_name"), plain.get("format")
    if name != "Generator":
        raise InvalidInput(f"{place(path)}: is of {printable(name)}, no generator", _MADE)
    absent = {name for name in KINDS if plain.get(name) == [None, None]}
    for component, pair in plain.items():
        if isinstance(pair, list) and component not in absent and _pair(component) != pair:
            told = f"the component {printable(component)} is {printable('.'.join(map(str, pair)))}"
            fact = f"{place(path)}: {told}, which is none of paramsmith's; it was not imported"
            raise InvalidInput(fact, "do not trust this generator")
    if type(number) is int and number != FORMAT:
        by = f" by paramsmith {printable(plain.get('paramsmith'), 40)}" if "paramsmith" in plain else ""
        fact = f"{place(path)}: was written{by} in format {number}; this version reads format {FORMAT}"
        raise InvalidInput(fact, "use that version, or train the generator again")
    there = [kind for name, kind in KINDS.items() if name in plain and name not in absent]
    if len(there) != 1:
        told = "there is no model" if not there else "there are two models"
        raise InvalidInput(f"{place(path)}: {told} where one is expected", "do not trust this generator")
    return _parsed(Index, {key: value for key, value in plain.items() if key not in KINDS}, path), there[0]


def _pair(component: str) -> list[str] | None:
    return KINDS[component].pair if component in KINDS else None


def _read_config(path: Path, kind: Kind) -> Config:
    """The config, whose parts are known and whose options are theirs. What is built from it is checked later."""
    from paramsmith.params import validated

    plain, _ = read_json(path, _MAX_CONFIG)
    config = _parsed(_CONFIGS[kind.name], plain, path)
    for which, registry in kind.parts.items():
        chosen: Part = getattr(config, which)
        try:
            part = registry.find(chosen.name)
            validated(part.params, chosen.options, f"{registry.kind} {part.name}")
        except InvalidInput as problem:
            hint = "it may come from a plug-in that is not installed, or from a newer paramsmith"
            raise InvalidInput(f"{place(path)}: {problem.fact}", hint) from None
    return config


def _parsed(model: type[M], plain: Mapping[str, object], path: Path) -> M:
    try:
        return model.model_validate(plain)
    except ValidationError as problem:
        error = problem.errors(include_url=False, include_input=False)[0]
        names = [printable(part, 60) for part in error["loc"][:4]]
        if error["type"] == "extra_forbidden":
            fields = [field.alias or name for name, field in model.model_fields.items()]
            near = difflib.get_close_matches(str(error["loc"][-1]), fields, 1)
            told = f"there is no key {'.'.join(names)}" + (f"; {near[0]} is meant?" if near else "")
        else:
            told = f"{'.'.join(names)}: {printable(error['msg'], 200)}"
        raise InvalidInput(f"{place(path)}: {told}", "it was damaged, or not written by paramsmith") from None


def _check_tensors(folder: Path, kind: Kind, config: Config) -> None:
    """The tensors that the parts have, built without memory, are those of the file: names, shapes, types."""
    from .skeleton import skeleton

    file = TensorFile(folder / kind.tensors)
    file.close()
    found = file.header.tensors
    where = place(folder / kind.tensors)
    try:
        wanted = skeleton(kind, config, sum(info.count for info in found.values()), len(found))
    except InvalidInput as problem:
        raise InvalidInput(f"{place(folder / kind.config)}: {problem.fact}", problem.hint) from None
    hint = "config and tensors do not belong together; fetch the generator again"
    for name, (dtype, shape) in wanted.items():
        info = found.get(name)
        if info is None:
            raise InvalidInput(f"{where}: tensor {printable(name)} is missing", hint)
        if info.shape != shape:
            told = f"has the shape {list(info.shape)}, where {kind.config} makes it {list(shape)}"
            raise InvalidInput(f"{where}: tensor {printable(name)} {told}", hint)
        wider = info.dtype.bits > max(32, dtype.bits)
        if info.dtype.code != dtype.code and (wider or not info.dtype.kind == dtype.kind == "float"):
            told = f"holds {info.dtype.code}, where {kind.config} makes it {dtype.code}"
            raise InvalidInput(f"{where}: tensor {printable(name)} {told}", hint)
    for name in found:
        if name not in wanted:
            raise InvalidInput(f"{where}: tensor {printable(name)} belongs to no part of {kind.config}", hint)
