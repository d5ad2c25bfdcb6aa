"""Statistics of a model on data, as a file: safetensors with the model's tensor names, and what they are in its header.

kind       tensors                                                          estimator
fisher     name: diagonal of the Fisher, the parameter's shape, float32     exact, sampled, empirical
gram       name: E[x xᵀ] of what the weight multiplies, (in, in) or         mean
           (groups, in, in), float32; weights with one input share one
moments    name/mean, name/var, name/norm of what the weight multiplies     mean

A file is made for one model, which it recognises by `weights_digest`, and is refused beside any other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo
from paramsmith.inputs import place
from paramsmith.memory import StateDict

Kind = Literal["fisher", "gram", "moments"]
KEY = "paramsmith.statistics"
# Bytes hashed of every tensor: from its beginning, its middle and its end. Fine-tunes differ nearly everywhere.
_SAMPLED = 4096
_CHUNK = 1 << 22


class About(BaseModel):
    """What a statistics file says of itself; `model` and `data` are digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind
    estimator: str
    examples: int = Field(ge=1)
    seed: int = 0
    model: str
    data: str
    transposed: tuple[str, ...] = ()  # gram: weights stored (in, out), whose inputs are their first dimension

    def metadata(self) -> dict[str, str]:
        """As the header of a file holds it."""
        return {KEY: self.model_dump_json()}


class Readable(Protocol):
    """A model's tensors: a Checkpoint or a StateDict."""

    label: str

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """What is stored, by name."""
        ...

    def reader(self, name: str) -> Callable[[int, memoryview], None]:
        """Reads one tensor's bytes."""
        ...


def weights_digest(model: Readable) -> str:
    """What tells a model from its other fine-tunes, however it is sharded: names, types, shapes and sampled bytes."""
    digest = hashlib.sha256()
    for name, info in sorted(model.tensors.items()):
        digest.update(json.dumps([name, info.dtype.code, list(info.shape)]).encode())
        read, size = model.reader(name), min(_SAMPLED, info.nbytes)
        for start in sorted({0, (info.nbytes - size) // 2, info.nbytes - size}):
            held = bytearray(size)
            read(start, memoryview(held))
            digest.update(held)
    return digest.hexdigest()


class Statistics:
    """An opened statistics file: headers read and checked, data on demand. A context manager.

    Statistics held in memory say nothing of their model (`about.model` is empty), which is then not checked.
    """

    def __init__(self, file: Checkpoint | StateDict, about: About) -> None:
        self._file, self.about = file, about
        self.label = file.label

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: Kind) -> Statistics:
        """Open a file of this kind. InvalidInput says what else it is."""
        file = Checkpoint.open(path)
        try:
            return cls(file, _about(file, kind))
        except BaseException:
            file.close()
            raise

    @property
    def pinned(self) -> str | None:
        """The reference of a file of the Hub, with the commit that is read."""
        return self._file.pinned if isinstance(self._file, Checkpoint) else None

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors, by name; those that share one are under one of their names."""
        return self._file.tensors

    @property
    def names(self) -> list[str]:
        """Every name, with those that share a tensor."""
        return [*self._file.tensors, *self._file.aliases]

    def info(self, name: str) -> TensorInfo | None:
        """The tensor of that name; None when there is none."""
        return self._file.info(name)

    def reader(self, name: str) -> Callable[[int, memoryview], None]:
        """What reads one tensor: call it with the first byte and a buffer to fill."""
        return self._file.reader(name)

    def fingerprint(self) -> dict[str, object]:
        """What tells this file from another, as JSON."""
        return self._file.fingerprint()

    def check_model(self, model: Readable) -> None:
        """InvalidInput when the file was not made for this model."""
        if self.about.model and self.about.model != weights_digest(model):
            fact = f"{place(Path(self.label))}: is about another model than {printable(model.label)}"
            raise InvalidInput(fact, f"statistics go with their model, in model order: measure {self.about.kind} again")

    def check_values(self) -> None:
        """InvalidInput, naming the tensor, for a value that is not finite or may not be negative, and for all zeros."""
        alive = False
        for name, info in self.tensors.items():
            if info.dtype.code != "F32":
                raise self._wrong(name, f"is {info.dtype.code}, not F32")
            read = self.reader(name)
            for start in range(0, info.nbytes, _CHUNK):
                held = np.empty(min(_CHUNK, info.nbytes - start) // 4, dtype=np.float32)
                read(start, held.view(np.uint8).data)
                if not np.isfinite(held).all():
                    raise self._wrong(name, "holds NaN or an infinity")
                if self.about.kind == "fisher" and held.min(initial=0) < 0:
                    raise self._wrong(name, "holds negative values, which no Fisher has")
                if self.about.kind == "gram" and _diagonal(held, start // 4, info.shape).min(initial=0) < 0:
                    raise self._wrong(name, "has a negative diagonal, which no Gram matrix has")
                alive = alive or bool(held.any())
        if not alive:
            raise InvalidInput(f"{place(Path(self.label))}: all values are zero", "measure it again, on other data")

    def _wrong(self, name: str, fact: str) -> InvalidInput:
        return InvalidInput(f"{place(Path(self.label))}: tensor {printable(name)} {fact}", "measure it again")

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._file, Checkpoint):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _diagonal(held: NDArray[np.float32], start: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What of these elements, the first of which is the tensor's `start`, is on the diagonal of its matrices."""
    if len(shape) < 2 or shape[-1] != shape[-2]:
        return held[:0]
    size = shape[-1]
    matrices = range(start // size**2, (start + len(held) - 1) // size**2 + 1)
    places = np.concatenate([np.arange(size) * (size + 1) + at * size**2 - start for at in matrices])
    found: NDArray[np.float32] = held[places[(places >= 0) & (places < len(held))]]
    return found


def _about(file: Checkpoint, kind: Kind) -> About:
    where = place(Path(file.label))
    if KEY not in file.metadata:
        raise InvalidInput(f"{where}: is no statistics file", f"make one: paramsmith measure {kind} MODEL ... -o FILE")
    try:
        about = About.model_validate_json(file.metadata[KEY])
    except ValidationError as problem:
        error = problem.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, error['loc'])) or KEY}: {error['msg']}"
        raise InvalidInput(f"{where}: the header is damaged: {printable(what)}", "measure it again") from None
    if about.kind != kind:
        raise InvalidInput(
            f"{where}: holds {about.kind}, not {kind}", f"paramsmith measure {kind} makes what is needed"
        )
    return about
