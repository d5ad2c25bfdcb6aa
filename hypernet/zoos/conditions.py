"""What a network of a zoo was trained for: numbers of its index, or tensors of files, read when they are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.dtypes import torch_dtype
from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.header import TensorInfo
from paramsmith.inputs import place
from paramsmith.memory import as_bytes

from .index import INDEX, Entry, OfRow, Stacked, within

_WHOLE = 1 << 26  # bytes up to which a tensor of rows is read and kept as a whole


class Conditions(Mapping[str, Tensor]):
    """The condition of one network, fp32; `shapes` are known without reading it."""

    def __init__(self, parts: Mapping[str, Tensor | Stacked | OfRow], files: ConditionFiles) -> None:
        self._parts, self.files = parts, files
        self.shapes = {name: files.shape(part) for name, part in parts.items()}

    def __getitem__(self, name: str) -> Tensor:
        part = self._parts[name]
        return part if isinstance(part, Tensor) else self.files.read(part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class ConditionFiles:
    """The files of a zoo that conditions are in: opened once, each named tensor read once and shared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fingerprints: dict[str, object] = {}
        self._infos: dict[str, Mapping[str, TensorInfo]] = {}
        self._held: dict[tuple[str, str], Tensor] = {}

    def of(self, entry: Entry) -> Conditions:
        """What an entry says. InvalidInput names what is wrong with it."""
        given = entry.condition
        if given is None:
            return Conditions({}, self)
        named = given if isinstance(given, dict) else {"vector": given}
        return Conditions({name: self._part(entry, name, value) for name, value in named.items()}, self)

    def shape(self, part: Tensor | Stacked | OfRow) -> tuple[int, ...]:
        """The shape of a tensor of a condition. InvalidInput where its file has none such."""
        if isinstance(part, Tensor):
            return tuple(part.shape)
        if isinstance(part, OfRow):
            whole = self._info(part.file, part.tensor).shape
            if not whole or part.row >= whole[0]:
                fact = f"has no row {part.row} in {printable(part.tensor)}, of shape {list(whole)}"
                raise InvalidInput(f"{place(self.folder / part.file)}: {fact}", "rows are counted from 0")
            return whole[1:]
        shapes = {name: self._info(part.file, name).shape for name in part.tensors}
        first = shapes[part.tensors[0]]
        other = next((name for name, shape in shapes.items() if shape != first), None)
        if other is not None:
            told = f"{printable(other)} is of shape {list(shapes[other])}, {printable(part.tensors[0])} {list(first)}"
            raise InvalidInput(f"{place(self.folder / part.file)}: {told}", "tensors of one shape can be stacked")
        return (len(part.tensors), *first)

    def read(self, part: Stacked | OfRow) -> Tensor:
        """The tensor, fp32. InvalidInput for one that is not finite."""
        if isinstance(part, Stacked):
            return torch.stack([self._tensor(part.file, name) for name in part.tensors])
        info = self._info(part.file, part.tensor)
        if info.nbytes <= _WHOLE:
            return self._tensor(part.file, part.tensor)[part.row]
        return self._read(part.file, info, part.row, 1)[0]

    def _part(self, entry: Entry, name: str, value: object) -> Tensor | Stacked | OfRow:
        if isinstance(value, dict):
            kind = Stacked if "tensors" in value else OfRow
            try:
                return kind.model_validate(value)
            except ValidationError as problem:
                error = problem.errors(include_url=False, include_input=False)[0]
                where = ".".join(printable(part, 60) for part in error["loc"][:2])
                hint = '{"file": "f.safetensors", "tensors": ["a", "b"]}, or {"file", "tensor", "row"}'
                raise InvalidInput(f"{self._where(entry, name)}: {where}: {printable(error['msg'])}", hint) from None
        try:
            tensor = torch.tensor([value] if isinstance(value, int | float) else value, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, RecursionError):
            tensor = torch.tensor(math.nan)
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(f"{self._where(entry, name)} is no numbers", "give finite numbers: [0.3, 1]")
        return tensor

    def _where(self, entry: Entry, name: str) -> str:
        return f"{place(self.folder / INDEX)}: the condition {printable(name)} of {printable(entry.label)}"

    def _tensor(self, file: str, name: str) -> Tensor:
        if (file, name) not in self._held:
            self._held[file, name] = self._read(file, self._info(file, name), 0, None)
        return self._held[file, name]

    def _info(self, file: str, name: str) -> TensorInfo:
        if file not in self._infos:
            with Checkpoint.open(within(self.folder, file)) as opened:
                self._infos[file], self.fingerprints[file] = dict(opened.tensors), opened.fingerprint()
        if name not in self._infos[file]:
            fact = f"{place(self.folder / file)}: has no tensor {printable(name)}"
            raise InvalidInput(fact, "a condition names tensors of its file")
        return self._infos[file][name]

    def _read(self, file: str, info: TensorInfo, row: int, rows: int | None) -> Tensor:
        """A tensor, or some rows of it."""
        shape = info.shape if rows is None else (rows, *info.shape[1:])
        values = torch.empty(shape, dtype=torch_dtype(info.dtype))
        if values.numel():
            with Checkpoint.open(within(self.folder, file)) as opened:
                if opened.fingerprint() != self.fingerprints[file]:
                    raise Failed(f"{place(self.folder / file)}: changed meanwhile", "leave the zoo alone during a run")
                opened.read_into(info.name, row * (values.nbytes if rows else 0), as_bytes(values))
        if not bool(torch.isfinite(values.float()).all()):
            fact = f"{place(self.folder / file)}: {printable(info.name)} holds values that are not finite"
            raise InvalidInput(fact, "conditions are finite numbers")
        return values.float()
