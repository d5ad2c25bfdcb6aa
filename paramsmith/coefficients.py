"""Learned coefficients as a file: what a merge multiplies each model's tensors by, and what it was learned from.

JSON, or safetensors where the name ends so (for many partitions). A file belongs to its models, in their order, which
it recognises by `weights_digest`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paramsmith.disk import replace_file
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import parse_header
from paramsmith.inputs import open_regular, place, read_at, read_json
from paramsmith.statistics import Readable, weights_digest

KEY = "paramsmith.coefficients"
_LARGEST = 3e38  # what float32 can hold, nearly; NaN is not below it
_MOST = 100_000_000  # bytes of a JSON file


class Coefficients(BaseModel):
    """Values of one parameter of a method, model by model and tensor by tensor.

    `values[tensor]` holds for every model (or once, for a parameter that all models share) one value, or one a
    partition; `default` is for tensors that are not named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    parameter: str = "weight"
    parameters: dict[str, object] = Field(default_factory=dict)  # the method's others, as they were while learning
    models: tuple[str, ...] = Field(min_length=1)  # digests
    base: str | None = None
    values: dict[str, tuple[tuple[float, ...], ...]] = Field(default_factory=dict)
    default: tuple[tuple[float, ...], ...]
    seed: int | None = None  # of the partitions
    learned: dict[str, object] = Field(default_factory=dict)  # how: learner, steps, scores

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        width = {len(row) for rows in (self.default, *self.values.values()) for row in rows}
        if len(width) != 1 or not min(width):
            raise ValueError("every model has the same number of values, one or one a partition")
        for name, rows in {"default": self.default, **self.values}.items():
            if len(rows) not in (1, len(self.models)):
                raise ValueError(f"{name} has values for {len(rows)} models, not {len(self.models)}")
            if not all(abs(value) < _LARGEST for row in rows for value in row):
                raise ValueError(f"{name} has a value that is not finite")
        return self

    def at(self, name: str, models: int = 1) -> tuple[float, ...]:
        """The values for one tensor, model after model, each with all its partitions; one for all, `models` times."""
        rows = self.values.get(name, self.default)
        return tuple(value for row in (rows * models if len(rows) == 1 else rows) for value in row)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file at once, or not at all. Raises Failed."""
        target = Path(path)
        replace_file(target, self.to_bytes(target.suffix == ".safetensors"))

    def to_bytes(self, packed: bool) -> bytes:
        """The file: safetensors when packed, else JSON."""
        plain = {"format": KEY, **self.model_dump(mode="json")}
        if not packed:
            return (json.dumps(plain, indent=1) + "\n").encode()
        from safetensors.numpy import save

        plain["values"] = {}
        held = {name: np.array(rows, dtype=np.float64) for name, rows in self.values.items()}
        return save(held, metadata={KEY: json.dumps(plain)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Coefficients:
        """Read a file, of this machine or the Hub. InvalidInput says what is wrong with it."""
        from paramsmith.remote import file_here

        found = file_here(os.fspath(path))
        plain = _packed(found) if found.suffix == ".safetensors" else read_json(found, _MOST)[0]
        if plain.pop("format", None) != KEY:
            raise InvalidInput(f"{place(found)}: is no file of coefficients", "make one: paramsmith learn")
        try:
            return cls.model_validate(plain)
        except ValidationError as problem:
            error = problem.errors(include_url=False)[0]
            what = ": ".join(filter(None, (".".join(map(str, error["loc"][:3])), error["msg"])))
            what = what.removeprefix("Value error, ")
            raise InvalidInput(f"{place(found)}: {printable(what, 300)}", "learn them again") from None

    def check_models(self, models: Sequence[Readable], base: Readable | None, path: str) -> None:
        """InvalidInput when they were learned for other models, or in another order."""
        where, hint = place(Path(path)), "give the models and the base they were learned with, in the same order"
        if len(models) != len(self.models):
            raise InvalidInput(f"{where}: is about {len(self.models)} models, {len(models)} given", hint)
        for model, digest in zip(models, self.models, strict=True):
            if weights_digest(model) != digest:
                raise InvalidInput(f"{where}: was not learned with {printable(model.label)} at this place", hint)
        if self.base is not None and (base is None or weights_digest(base) != self.base):
            raise InvalidInput(f"{where}: was learned with another base", hint)


def _packed(path: Path) -> dict[str, object]:
    fd, _ = open_regular(path)
    try:
        header = parse_header(path, fd)
        plain = _plain(header.metadata.get(KEY, "{}"))
        if plain is None:
            raise InvalidInput(f"{place(path)}: is no file of coefficients", "make one: paramsmith learn")
        values: dict[str, object] = {}
        for name, info in header.tensors.items():
            if info.dtype.code != "F64" or len(info.shape) != 2:
                raise InvalidInput(f"{place(path)}: tensor {printable(name)} holds no coefficients", "learn them again")
            held = np.frombuffer(read_at(path, fd, info.offset, info.nbytes), dtype="<f8")
            values[name] = held.reshape(info.shape).tolist()
    finally:
        os.close(fd)
    return {**plain, "values": values}


def _plain(text: str) -> dict[str, object] | None:
    try:
        plain: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return plain if isinstance(plain, dict) else None


def uniform_over(values: Mapping[str, float] | Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """One value a model, as `default` has it.

    >>> uniform_over([0.5, 0.25])
    ((0.5,), (0.25,))
    """
    listed = values.values() if isinstance(values, Mapping) else values
    return tuple((float(value),) for value in listed)
