"""Plan the output files: which tensor goes where, to the byte, before the first one is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from paramsmith.errors import InvalidInput
from paramsmith.header import TensorSpec, layout

INDEX_NAME = "model.safetensors.index.json"
_METADATA = {"format": "pt"}  # transformers loads no file without it


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One safetensors file to be: its name, its exact header and size, its tensors in the order of their bytes."""

    name: str
    header: bytes
    size: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """All files of an output. `where` says for each tensor the number of its file and its first byte in there."""

    files: tuple[OutputFile, ...]
    where: Mapping[str, tuple[int, int]]
    nbytes: int
    index: bytes | None

    @cached_property
    def digest(self) -> str:
        """Identifies names, dtypes, shapes and their places: equal digests, interchangeable files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(json.dumps([file.name, file.size, len(file.header)]).encode())
            digest.update(file.header)
        return digest.hexdigest()


def plan_files(
    tensors: Sequence[TensorSpec],
    shard_size: int | None,
    single: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Layout:
    """Lay out `tensors`, given in model order, in files as transformers' `save_pretrained` does.

    A file takes tensors until the next one would carry it over `shard_size` bytes; a tensor larger than that gets a
    file of its own. `shard_size=None` or a `single` file name make one file. `metadata` goes into every header. Raises
    InvalidInput.

    >>> from paramsmith.dtypes import DTYPES
    >>> specs = [TensorSpec(name, DTYPES["BF16"], (4,)) for name in "abc"]
    >>> plan = plan_files(specs, shard_size=16)
    >>> [(file.name, file.tensors) for file in plan.files]
    [('model-00001-of-00002.safetensors', ('a', 'b')), ('model-00002-of-00002.safetensors', ('c',))]
    """
    if shard_size is not None and shard_size <= 0:
        raise InvalidInput(f"the shard size must be positive, found {shard_size}", "for example --shard-size 5GB")
    shards = [list(tensors)] if single is not None or shard_size is None else _distribute(tensors, shard_size)
    files: list[OutputFile] = []
    where: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        header, offsets, size = layout(shard, {**_METADATA, **(metadata or {})})
        name = single or _file_name(number, len(shards))
        # an empty tensor begins where the next one does, and comes before it
        order = sorted(shard, key=lambda tensor: (offsets[tensor.name], tensor.nbytes))
        files.append(OutputFile(name, header, size, tuple(tensor.name for tensor in order)))
        where.update((tensor, (number, offset)) for tensor, offset in offsets.items())
    nbytes = sum(tensor.nbytes for tensor in tensors)
    index = _index(tensors, files, where, nbytes) if len(files) > 1 else None
    return Layout(tuple(files), where, nbytes, index)


def _distribute(tensors: Sequence[TensorSpec], shard_size: int) -> list[list[TensorSpec]]:
    """Cut the model order into shards by the Hub client's rule.

    A tensor that alone is too large goes before the shard still being filled and does not end it.
    """
    shards: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    filled = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if nbytes > shard_size:
            shards.append([tensor])
            continue
        if filled + nbytes > shard_size:
            shards.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += nbytes
    if current or not shards:
        shards.append(current)
    return shards


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _index(
    tensors: Sequence[TensorSpec], files: Sequence[OutputFile], where: Mapping[str, tuple[int, int]], nbytes: int
) -> bytes:
    weight_map = {tensor.name: files[where[tensor.name][0]].name for tensor in tensors}
    index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
