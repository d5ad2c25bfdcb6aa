"""generation.json: by what, for what and from which seed weights were generated, so that anyone can make them again.

Nothing in it tells when, where or by whom: the same generation gives the same bytes. A generator of this machine goes
by the name of its folder and is known by its hashes; one of the Hub by repository and commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from paramsmith import __version__
from paramsmith.errors import InvalidInput, printable
from paramsmith.hashing import sha256_of
from paramsmith.hypernet.artifact import Artifact
from paramsmith.hypernet.latents import PLAIN, Sampling
from paramsmith.hypernet.model import WeightModel
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.inputs import open_regular, place, read_json
from paramsmith.lineage import Digest, FileRecord, Files, RepoName, local_names, shallow
from paramsmith.memory import as_bytes
from paramsmith.progress import Progress
from paramsmith.shards import INDEX_NAME, Layout

from .conditions import condition_digest, shown

NAME = "generation.json"
_MAX_BYTES = 20_000_000

Plain = Annotated[dict[str, object], AfterValidator(shallow)]
Form: TypeAlias = Literal["checkpoint", "head", "adapter", "delta"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Record):
    """What generated: a saved generator by its files, one in memory by a hash of its config and tensors.

    `preset` and `options` are those that it was built with, where it was built of a preset.
    """

    reference: str = Field(max_length=2000)
    repo: RepoName | None = None
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    files: Files = Field(default_factory=dict)
    state: Digest | None = None
    preset: str | None = Field(default=None, max_length=200)
    options: Plain = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """One hash of all that decides what is generated."""
        told = self.state or {name: file.sha256 for name, file in sorted(self.files.items())}
        return hashlib.sha256(json.dumps([self.preset, told]).encode()).hexdigest()


class Asked(_Record):
    """What was asked for: the target by a hash of its names and shapes, the condition by one of its tensors.

    `values` has the condition itself where it is short; `classes` the number that was asked for; `steps` and `guidance`
    are told where they were not the generator's own.
    """

    target: str = Field(max_length=2000)
    spec: Digest
    classes: int | None = None
    condition: Digest | None = None
    values: Plain | None = None
    seed: int
    index: int
    dtype: str | None = None
    steps: int | None = None
    guidance: float | None = None

    @model_serializer(mode="wrap")
    def _plain(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        """As ever, and how it was sampled only where that was chosen."""
        told: dict[str, object] = plain(self)
        return {name: v for name, v in told.items() if v is not None or name not in ("steps", "guidance")}


class Generation(_Record):
    """generation.json.

    `form`: what was made of the sample, and `base` of which model. `made` tells how one network came of several: by
    selection, say; None for a sample as it was drawn.
    """

    format: Literal[1] = 1
    paramsmith: str = Field(default=__version__, max_length=100)
    torch: str = Field(default=torch.__version__, max_length=100)
    device: str = Field(default="cpu", max_length=100)
    generator: Origin
    asked: Asked
    form: Form = "checkpoint"
    base: Origin | None = None
    made: Plain | None = None
    outputs: Files = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file: the same generation, the same bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n").encode()

    @property
    def key(self) -> str:
        """What tells this generation from any other, for going on with it."""
        return hashlib.sha256(self.model_copy(update={"outputs": {}}).to_bytes()).hexdigest()


def saved_origin(found: Artifact, progress: Progress | None = None) -> Origin:
    """A generator that lies on the disk: the hashes of its files."""
    paths = {name: found.folder / name for name in found.files}
    hashed = sha256_of([path for name, path in paths.items() if name not in found.sha256], progress)
    files = {
        name: FileRecord(size=path.stat().st_size, sha256=found.sha256.get(name) or hashed[path])
        for name, path in paths.items()
    }
    preset = found.config.preset
    return Origin(
        reference=found.label if found.repo else local_names([found.label])[0],
        repo=found.repo,
        commit=found.commit,
        files=files,
        preset=preset.name if preset else None,
        options=dict(preset.options) if preset else {},
    )


def held_origin(model: WeightModel) -> Origin:
    """A generator in memory: one hash of its config and its tensors."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(as_bytes(tensor.detach().cpu().contiguous()))
    preset = config.get("preset") or {}
    built = str(preset.get("name", "")) or None
    options = dict(preset.get("options", {}))
    return Origin(reference=built or "in memory", state=digest.hexdigest(), preset=built, options=options)


def asked(
    spec: TargetSpec,
    condition: Condition,
    *,
    target: str,
    seed: int,
    index: int,
    classes: int | None = None,
    dtype: str | None = None,
    how: Sampling = PLAIN,
) -> Asked:
    """What one sample is asked for; `condition` has a leading axis of 1."""
    return Asked(
        target=target,
        spec=spec.hash,
        classes=classes,
        condition=condition_digest(condition) if condition else None,
        values=shown(condition) if condition else None,
        seed=seed,
        index=index,
        dtype=dtype,
        steps=how.steps,
        guidance=how.guidance if how.guidance != 1 else None,
    )


def planned_outputs(layout: Layout) -> dict[str, FileRecord]:
    """The files to be, as far as they are known before they are written."""
    files = {
        file.name: FileRecord(size=file.size, header=hashlib.sha256(file.header[8:]).hexdigest())
        for file in layout.files
    }
    if layout.index is not None:
        digest = hashlib.sha256(layout.index).hexdigest()
        files[INDEX_NAME] = FileRecord(size=len(layout.index), sha256=digest)
    return files


def described(data: Mapping[str, bytes]) -> dict[str, FileRecord]:
    """Small files that are written beside the tensors."""
    return {name: FileRecord(size=len(held), sha256=hashlib.sha256(held).hexdigest()) for name, held in data.items()}


def recorded(copies: Mapping[str, Path]) -> dict[str, FileRecord]:
    """Files that are copied beside the tensors, which may be large: their sizes, until they are hashed."""
    return {name: FileRecord(size=path.stat().st_size) for name, path in copies.items()}


def read_generation(folder: Path) -> Generation:
    """The generation that lies in a folder. InvalidInput says what is wrong with it."""
    path = folder / NAME
    plain, _ = read_json(path, _MAX_BYTES)
    try:
        return Generation.model_validate(plain)
    except ValidationError as problem:
        error = problem.errors(include_url=False, include_input=False)[0]
        what = ": ".join(filter(None, (".".join(map(str, error["loc"][:4])), error["msg"])))
        hint = "it was damaged, or made by another version of paramsmith"
        raise InvalidInput(f"{place(path)}: {printable(what.replace('Value error, ', ''), 300)}", hint) from None


def completed(folder: Path, progress: Progress | None = None) -> Generation:
    """The generation of a folder with the hash of every file in it. InvalidInput names one that is not what it was."""
    found = read_generation(folder)
    paths = check_outputs(folder, found)
    hashed = sha256_of(paths.values(), progress)
    outputs: dict[str, FileRecord] = {}
    for name, path in paths.items():
        record = found.outputs[name]
        if record.sha256 not in (None, hashed[path]):
            raise _changed(path)
        outputs[name] = record.model_copy(update={"sha256": hashed[path]})
    return found.model_copy(update={"outputs": outputs})


def check_outputs(folder: Path, generation: Generation) -> dict[str, Path]:
    """The files that a generation tells of, by name. InvalidInput for one of another size or header."""
    paths = {name: folder / name for name in generation.outputs}
    for name, path in paths.items():
        _check(path, generation.outputs[name])
    return paths


def _check(path: Path, record: FileRecord) -> None:
    """A file that is missing, or whose size or header is another, before gigabytes are hashed."""
    from paramsmith.tensorfiles import TensorFile

    descriptor, status = open_regular(path)
    with open(descriptor, "rb"):
        same = status.st_size == record.size
    if same and record.header is not None:
        file = TensorFile(path)
        file.close()
        same = file.header.digest == record.header
    if not same:
        raise _changed(path)


def _changed(path: Path) -> InvalidInput:
    fact = f"{place(path)}: is not what {NAME} tells of"
    return InvalidInput(fact, "it was changed since; generate it again")
