"""State dicts in memory, behind the same reading and writing as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from paramsmith.dtypes import from_torch, torch_dtype
from paramsmith.errors import InvalidInput, printable
from paramsmith.header import TensorInfo, TensorSpec
from paramsmith.model_config import ModelConfig


class StateDict:
    """A dict of tensors to read from, as a Checkpoint is; tensors that share all their storage are tied."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self.label = label
        self.origin = tensors
        self.folder: Path | None = None
        self.config: ModelConfig | None = None
        self.warnings: list[str] = []
        self.tensors: dict[str, TensorInfo] = {}
        self.aliases: dict[str, str] = {}
        self._bytes: dict[str, memoryview] = {}
        stored: dict[tuple[object, ...], str] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
                raise InvalidInput(f"{label}: {printable(name)} is no dense tensor", "give a dict of dense tensors")
            key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if tensor.numel() and key in stored:
                self.aliases[name] = stored[key]
                continue
            stored[key] = name
            held = tensor.detach().contiguous().cpu()
            self.tensors[name] = TensorInfo(
                name, from_torch(tensor.dtype), tuple(tensor.shape), Path(label), 0, held.nbytes
            )
            self._bytes[name] = as_bytes(held)

    def info(self, name: str) -> TensorInfo | None:
        """The tensor of that name, through ties."""
        return self.tensors.get(self.aliases.get(name, name))

    def reader(self, name: str) -> Callable[[int, memoryview], None]:
        """What reads one tensor: call it with the first byte and a buffer to fill."""
        held = self._bytes[self.aliases.get(name, name)]

        def read(start: int, buffer: memoryview) -> None:
            buffer[:] = held[start : start + len(buffer)]

        return read

    def fingerprint(self) -> dict[str, object]:
        """Nothing outlives the process, so there is nothing to recognise."""
        return {"label": self.label}

    def check_unchanged(self) -> None:
        """A caller who changes a tensor while it is merged gets what it asked for."""


class MemorySink:
    """Where a merge in memory is written: a dict of new tensors."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self.tensors = {s.name: torch.empty(s.shape, dtype=torch_dtype(s.dtype)) for s in specs}
        self._bytes = {n: as_bytes(t) for n, t in self.tensors.items()}

    def write(self, name: str, start: int, buffer: memoryview) -> None:
        """Put bytes at their place."""
        self._bytes[name][start : start + len(buffer)] = buffer

    def finish(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Nothing to record."""

    def is_finished(self, name: str, start: int, end: int) -> bool:
        """Nothing was done before."""
        return False

    def remember(self, key: str, value: object) -> None:
        """Nothing to resume."""

    def recall(self, key: str) -> object | None:
        """Nothing was remembered."""
        return None


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor; they live as long as it does."""
    return tensor.view(-1).view(torch.uint8).numpy().data
