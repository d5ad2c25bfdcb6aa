"""Writing a zoo: a stacked file a group of networks, their conditions beside it, the index; all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from paramsmith.destination import Destination
from paramsmith.disk import replace_file, sync_data, sync_folder, write_error
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import TargetSpec

from .digest import digest_of
from .index import INDEX, Entry, index_bytes
from .member import but_for_classes, shapes_of
from .targetfile import TARGETS, targets_bytes


class ZooWriter:
    """A folder in the making, as a context: `add` groups of networks, then `publish`; else nothing stays of it.

    InvalidInput or Refused, on entering, where the output cannot be; `force` replaces another zoo.
    """

    def __init__(self, output: str | os.PathLike[str], *, force: bool = False) -> None:
        self._place = Destination(Path(output), force=force, single=False)
        self._entries: list[tuple[int, Entry]] = []
        self._targets: list[TargetSpec] = []
        self.groups = 0

    def __enter__(self) -> Self:
        self._place.claim()
        self._place.clear()
        self._place.files.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.leave(keep=False)

    def add(
        self,
        spec: TargetSpec,
        tensors: Mapping[str, Tensor],
        entries: Sequence[Entry],
        conditions: Sequence[Condition],
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Networks (B, *shape) of one architecture, what is known of each, and what it was trained for.

        Path, row, condition and sha256 of the entries are filled in here. `numbers` are the networks' places in the
        index, where they are not in order.
        """
        self.groups += 1
        file = f"zoo-{self.groups:05d}.safetensors"
        stored = {name: tensors[name].detach().cpu().contiguous() for name in shapes_of(spec)}
        self._save(file, stored)
        where = self._conditions(f"conditions-{self.groups:05d}.safetensors", conditions)
        shapes = shapes_of(spec)
        if all(shapes_of(one) != shapes and but_for_classes(one, shapes) is None for one in self._targets):
            self._targets.append(spec)
        for row, entry in enumerate(entries):
            digest = digest_of({name: values[row] for name, values in stored.items()})
            told = {"path": file, "row": row, "sha256": digest, "condition": where[row] or None}
            number = len(self._entries) if numbers is None else numbers[row]
            self._entries.append((number, entry.model_copy(update=told)))

    def beside(self, name: str, data: bytes) -> None:
        """A further file of the folder, which is no network. Raises Failed."""
        replace_file(self._place.files / name, data)

    def publish(self) -> Path:
        """Write the index, and put the folder in its place. Raises Refused or Failed."""
        if not self._entries:
            raise InvalidInput("a zoo of no networks", "give it one or more")
        entries = [entry for _, entry in sorted(self._entries, key=lambda pair: pair[0])]
        replace_file(self._place.files / TARGETS, targets_bytes(self._targets))
        replace_file(self._place.files / INDEX, index_bytes(entries))
        sync_folder(self._place.files)
        self._place.publish("")
        return self._place.target

    def _conditions(self, file: str, conditions: Sequence[Condition]) -> list[dict[str, object]]:
        """Write them into one file, each name's stacked where all have one shape; and where each is found."""
        stored: dict[str, Tensor] = {}
        where: list[dict[str, object]] = [{} for _ in conditions]
        first = set(conditions[0]) if conditions else set()
        other = next((i for i, condition in enumerate(conditions) if set(condition) != first), None)
        if other is not None:
            told = [", ".join(sorted(names)) or "nothing" for names in (first, conditions[other])]
            fact = f"networks of one architecture are asked for by {printable(told[0])}, and by {printable(told[1])}"
            raise InvalidInput(fact, "ask for the same every time")
        for name in conditions[0] if conditions else ():
            held = [condition[name].detach().cpu() for condition in conditions]
            if len({tensor.shape for tensor in held}) == 1:
                stored[name] = torch.stack(held).contiguous()
                rows = [(name, row) for row in range(len(held))]
            else:
                stored.update((f"{name}.{i}", tensor[None].contiguous()) for i, tensor in enumerate(held))
                rows = [(f"{name}.{i}", 0) for i in range(len(held))]
            for one, (tensor_name, row) in zip(where, rows, strict=True):
                one[name] = {"file": file, "tensor": tensor_name, "row": row}
        if stored:
            self._save(file, stored)
        return where

    def _save(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        path = self._place.files / file
        try:
            save_file(dict(tensors), path, {"format": "pt"})
            path.chmod(self._place.files.stat().st_mode & 0o666)  # the library's files are for nobody else to read
            with path.open("rb") as opened:
                sync_data(opened.fileno(), path)
        except OSError as error:
            raise write_error(error, path) from error
