"""Which files hold the weights of a model: one safetensors file, a folder with one, or an index and its shards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paramsmith.errors import InvalidInput, printable
from paramsmith.header import MAX_TENSORS, Header, TensorInfo
from paramsmith.inputs import place, read_json

MAX_INDEX = 100_000_000
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_STEMS = ("model", "diffusion_pytorch_model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # could run code when loaded
_PACKED = ("qweight", "qzeros", "g_idx", "weight_packed", "quant_map", ".SCB")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files to open. `folder` is None for a file given by itself; `index` is where `shard_of` was read."""

    folder: Path | None
    files: tuple[Path, ...]
    index: Path | None = None
    shard_of: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def find_weights(path: str | os.PathLike[str]) -> WeightFiles:
    """Find the weights at `path`. InvalidInput says what was looked for; no weight file is opened."""
    found = _existing(os.fspath(path))
    if found.is_dir():
        return _in_folder(found)
    if found.name.endswith(INDEX_SUFFIX):
        raise InvalidInput(f"{place(found)}: is an index, not weights", "name the folder it lies in")
    if found.suffix.lower() in PICKLES:
        raise _pickled(found)
    if found.suffix != SUFFIX:
        raise InvalidInput(f"{place(found)}: is neither a folder nor a {SUFFIX} file", "convert it first")
    return WeightFiles(None, (found,))


def gather_tensors(
    model: Path, found: WeightFiles, headers: Mapping[Path, Header]
) -> tuple[dict[str, TensorInfo], list[str]]:
    """All tensors of a model from the headers of its files, held against the index: (tensors, warnings).

    InvalidInput names the tensor: in two files, in none, in another than the index says, or of a kind that arithmetic
    on its elements would corrupt.
    """
    tensors: dict[str, TensorInfo] = {}
    for path, header in headers.items():
        for name, info in header.tensors.items():
            if name in tensors:
                fact = f"{place(path)}: tensor {printable(name)} is in {printable(tensors[name].file.name)} as well"
                raise InvalidInput(fact, "only one of the two can be meant; download the model again")
            tensors[name] = info
    warnings = list(found.warnings)
    if found.index is not None:
        _check_listed(found.index, found.shard_of, tensors)
        warnings += _leave_out_unlisted(found.shard_of, tensors)
    if not tensors:
        raise InvalidInput(f"{place(model)}: holds no tensors")
    if len(tensors) > MAX_TENSORS:
        raise InvalidInput(f"{place(model)}: holds {len(tensors):,} tensors; at most {MAX_TENSORS:,} are read")
    for info in tensors.values():
        _refuse_encoded(info)
    return tensors, warnings


def _check_listed(index: Path, shard_of: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    for name, shard in shard_of.items():
        info = tensors.get(name)
        if info is None or info.file.name != shard:
            where = "no file" if info is None else printable(info.file.name)
            fact = f"{place(index)}: tensor {printable(name)} should be in {printable(shard)} and is in {where}"
            raise InvalidInput(fact, "index and shards do not belong together; download the model again")


def _leave_out_unlisted(shard_of: Mapping[str, str], tensors: dict[str, TensorInfo]) -> list[str]:
    unlisted: dict[Path, list[str]] = {}
    for name in [name for name in tensors if name not in shard_of]:
        unlisted.setdefault(tensors.pop(name).file, []).append(name)
    warnings = []
    for path, names in unlisted.items():
        listed = ", ".join(printable(name) for name in names[:5])
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        warnings.append(f"{place(path)}: left out, as the index does not name it: {listed}{more}")
    return warnings


def _refuse_encoded(info: TensorInfo) -> None:
    """Codes whose meaning lies in other tensors (scales, zero points, indices) are no numbers to compute with."""
    if info.dtype.kind in ("float8", "packed"):
        found = f"{info.dtype.code} codes count only together with their scales, which are not understood"
        hint = "dequantise the model first"
    elif info.dtype.kind == "integer" and info.name.endswith(_PACKED):
        found = f"packed integer weights ({info.dtype.code})"
        hint = "integers must never be averaged: dequantise the model first"
    else:
        return
    raise InvalidInput(f"{place(info.file)}: tensor {printable(info.name)}: {found}", hint)


def _existing(text: str) -> Path:
    if not text:
        raise InvalidInput("the path of a model is empty")
    try:
        os.stat(text)
    except (OSError, ValueError) as error:
        if os.path.islink(text) or not isinstance(error, FileNotFoundError):
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInput(f"{printable(text, 2000)}: cannot be opened: {printable(reason.lower())}") from None
        hint = "check the spelling; a model of the hub is user/name or hf://user/name"
        raise InvalidInput(f"{printable(text, 2000)}: does not exist", hint) from None
    return Path(text)


def _in_folder(folder: Path) -> WeightFiles:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise InvalidInput(f"{place(folder)}: cannot be listed: {printable(error.strerror)}") from None
    for stem in _STEMS:
        single, index = stem + SUFFIX, stem + INDEX_SUFFIX
        if index in names:
            return _indexed(folder, folder / index, single if single in names else None)
        if single in names:
            return WeightFiles(folder, (folder / single,))
    others = [name for name in names if name.endswith(SUFFIX) and name != "adapter_model.safetensors"]
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indexes) == 1:
        return _indexed(folder, folder / indexes[0], None)
    if len(others) == 1 and not _SHARD.fullmatch(others[0]):
        return WeightFiles(folder, (folder / others[0],))
    raise _nothing(folder, names, others)


def _nothing(folder: Path, names: list[str], others: list[str]) -> InvalidInput:
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        return InvalidInput(f"{place(folder)}: is an adapter, not a whole model", "merge it into its base model first")
    if others:
        listed = printable(", ".join(others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        sharded = any(_SHARD.fullmatch(name) for name in others)
        hint = "download the index as well" if sharded else "name one of the files"
        return InvalidInput(f"{place(folder)}: there is no index that says how {listed} belong together", hint)
    pickled = [name for name in names if name.endswith(PICKLES) and ("model" in name or len(names) == 1)]
    if pickled:
        return _pickled(folder / pickled[0])
    wanted = ", ".join(stem + end for stem in _STEMS for end in (SUFFIX, INDEX_SUFFIX))
    if "model_index.json" in names:
        hint = "it is a pipeline: name the folder of one of its parts, such as unet or transformer"
    else:
        hint = "only config.json is there: download the weights too" if "config.json" in names else "check the path"
    return InvalidInput(f"{place(folder)}: holds no weights; looked for {wanted} or a single *{SUFFIX}", hint)


def _pickled(path: Path) -> InvalidInput:
    fact = f"{place(path)}: is a pickle, which could run code when loaded; it was not opened"
    return InvalidInput(fact, "convert it to safetensors first")


def _indexed(folder: Path, index: Path, single: str | None) -> WeightFiles:
    shard_of = _weight_map(index)
    shards = sorted(set(shard_of.values()))
    if single is not None and single not in shards:
        fact = f"{place(folder)}: holds both {single} and {index.name}, which does not mention it"
        raise InvalidInput(fact, "remove the one that is out of date")
    return WeightFiles(folder, tuple(folder / s for s in shards), index, shard_of, tuple(_collisions(index, shards)))


def _weight_map(index: Path) -> dict[str, str]:
    parsed, _ = read_json(index, MAX_INDEX)
    weight_map = parsed.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidInput(f"{place(index)}: weight_map is missing or is not an object that names tensors")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise InvalidInput(f"{place(index)}: weight_map names no file for tensor {printable(name)}")
    for shard in sorted(set(weight_map.values())):
        if not _is_plain(shard):
            fact = f"{place(index)}: {printable(shard)} is not the plain name of a {SUFFIX} file in the same folder"
            raise InvalidInput(fact, "an index may only name files that lie beside it; do not trust this model")
    return weight_map


def _is_plain(name: str) -> bool:
    """No separator, drive, control character or step upwards, on any system."""
    return name.endswith(SUFFIX) and not name.startswith(".") and name.isprintable() and not set(name) & set("/\\:")


def _collisions(index: Path, shards: list[str]) -> list[str]:
    seen: dict[str, str] = {}
    found = []
    for shard in shards:
        other = seen.setdefault(shard.casefold(), shard)
        if other != shard:
            names = f"{printable(other)} and {printable(shard)}"
            found.append(f"{place(index)}: {names} are one file on systems that ignore case")
    return found
