"""The model that something generated is put into: its headers, what it is known by, which of its tensors are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.hashing import sha256_of
from paramsmith.header import TensorInfo
from paramsmith.hub import Reference
from paramsmith.hypernet.targets.describe import spec_of_checkpoint
from paramsmith.hypernet.targets.target import Slot
from paramsmith.lineage import FileRecord, local_names

from .provenance import Origin

if TYPE_CHECKING:
    from paramsmith.model_config import ModelConfig

ADAPTED = "base_model.model."  # what PEFT puts before the names of a model
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})  # matrices are (in, out) there


@dataclass(frozen=True)
class Base:
    """A checkpoint, of which no weights are in memory. `label` is what it is opened by; `heads`: its class tensors."""

    label: str
    origin: Origin
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    aliases: Mapping[str, str]
    metadata: Mapping[str, str]
    config: ModelConfig | None
    folder: Path | None
    heads: tuple[Slot, ...]
    fingerprint: Mapping[str, object] = field(repr=False)

    @classmethod
    def of(cls, reference: str) -> Base:
        """Open a folder, a .safetensors file, or a model of the Hub, and hash its files. InvalidInput."""
        with Checkpoint.open(reference) as checkpoint:
            checkpoint.fetch(list(checkpoint.tensors))
            checkpoint.fetch_companions()
            heads: tuple[Slot, ...] = ()
            with suppress(InvalidInput):  # what is quantised can still be copied
                heads = tuple(s for s in spec_of_checkpoint(checkpoint).slots if s.class_axis is not None)
            kept = {key: text for key, text in checkpoint.metadata.items() if key in checkpoint.aliases}
            return cls(
                label=checkpoint.pinned or reference,
                origin=origin_of(checkpoint),
                tensors=dict(checkpoint.tensors),
                aliases=dict(checkpoint.aliases),
                metadata=kept,
                config=checkpoint.config,
                folder=checkpoint.whole_folder(weights=False),
                heads=heads,
                fingerprint=checkpoint.fingerprint(),
            )

    @contextmanager
    def reading(self) -> Iterator[Checkpoint]:
        """It, to read from. Failed where it is no longer what it was."""
        with Checkpoint.open(self.label) as checkpoint:
            if checkpoint.fingerprint() != self.fingerprint:
                fact = f"{printable(self.origin.reference)}: changed since it was looked at"
                raise Failed(fact, "leave the base alone during a run")
            yield checkpoint

    @property
    def is_diffusers(self) -> bool:
        """Whether diffusers loads it."""
        return self.config is not None and "_class_name" in self.config.raw

    @property
    def is_transposed(self) -> bool:
        """Whether its linear layers are of transformers' Conv1D, (in, out)."""
        return self.config is not None and self.config.raw.get("model_type") in _TRANSPOSED

    def tensor(self, name: str) -> TensorInfo | None:
        """What a generated tensor of this name stands for: the same name, or the only one that ends so or it ends in.

        None where there is no such tensor, or there are several. InvalidInput where it is tied to another.
        """
        bare = name.removeprefix(ADAPTED)
        if bare in self.tensors:
            return self.tensors[bare]
        if bare in self.aliases:
            fact = f"{printable(bare)}: is tied to {printable(self.aliases[bare])} in the base"
            raise InvalidInput(fact, "untie them first: what is generated would replace both")
        ends = [other for other in self.tensors if other.endswith(f".{bare}") or bare.endswith(f".{other}")]
        return self.tensors[ends[0]] if len(ends) == 1 else None


def missing(name: str, base: Base) -> InvalidInput:
    """That a generated tensor stands for nothing in the base."""
    some = ", ".join(printable(other) for other in list(base.tensors)[-3:])
    fact = f"{printable(name)}: is generated, and the base {printable(base.origin.reference)} has no tensor like it"
    return InvalidInput(fact, f"name a base that was made for it; this one has {some} and {len(base.tensors):,} in all")


def origin_of(checkpoint: Checkpoint) -> Origin:
    """What a record tells of a checkpoint: the hashes of its files; of the Hub also repository and commit."""
    known = {name: told for name, told in checkpoint.fingerprint().items() if isinstance(told, dict)}
    paths = {info.file.name: info.file for info in checkpoint.tensors.values()}
    hashed = sha256_of([paths[name] for name, told in known.items() if "sha256" not in told and name in paths])
    files = {
        name: FileRecord(size=int(told["size"]), sha256=told.get("sha256") or hashed[paths[name]])
        for name, told in known.items()
        if name in paths
    }
    pinned = Reference.parse(checkpoint.pinned) if checkpoint.pinned else None
    if pinned is not None:
        return Origin(reference=pinned.repo, repo=pinned.repo, commit=pinned.revision, files=files)
    return Origin(reference=local_names([checkpoint.label])[0], files=files)
