"""The safetensors container: a strict reader of headers and the exact layout of new files.

A file is 8 bytes of header length (little-endian), that many bytes of JSON, then the data without holes. The reader
is stricter than the format's own library wherever two readers could see two different models in one file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

from paramsmith.dtypes import DTYPES, DType
from paramsmith.errors import InvalidInput, printable
from paramsmith.inputs import DuplicateKey, place, read_at, unique_pairs

MAX_HEADER = 25_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 64
_MAX_BITS = 8 * (2**63 - 1)
_DAMAGED = "the file is damaged or was written by a broken tool; download it again"

# What is found under the name of a safetensors file, told by its first bytes (lower case).
_IMPOSTORS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git lfs pointer, not the weights", "fetch the weights: git lfs pull"),
    (b"<!doctype", "a web page, not weights", "the download went wrong; download the file again"),
    (b"<html", "a web page, not weights", "the download went wrong; download the file again"),
    (b"<?xml", "an xml document, not weights", "the download went wrong; download the file again"),
    (b"pk\x03\x04", "a zip archive (a pickled torch checkpoint?)", "convert it to safetensors first"),
    (b"\x80\x02", "a pickle, which could run code when loaded", "convert it to safetensors first"),
    (b"\x80\x03", "a pickle, which could run code when loaded", "convert it to safetensors first"),
    (b"\x80\x04", "a pickle, which could run code when loaded", "convert it to safetensors first"),
    (b"\x80\x05", "a pickle, which could run code when loaded", "convert it to safetensors first"),
    (b"gguf", "a gguf file", "convert it to safetensors first"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b'{"', "json text, not weights", "the download went wrong; download the file again"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one stored tensor lies: `nbytes` bytes at the absolute `offset` of `file`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What one file declares: its tensors in the order of their bytes, its metadata, where the data begins."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that is to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file (types narrower than a byte are packed)."""
        return self.count * self.dtype.bits // 8


def parse_header(path: Path, fd: int) -> Header:
    """Read and validate the header of the open file `fd`; `path` is for messages and the result.

    Nothing is trusted: lengths, offsets (contiguous, without overlap, to the end of the file), products of shapes,
    names (unique) and dtypes are checked. InvalidInput names the file and the tensor.
    """
    size = os.fstat(fd).st_size
    text = _header_text(path, fd, size)
    entries = _parse_json(path, text)
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise InvalidInput(f"{place(path)}: holds {len(entries):,} tensors; at most {MAX_TENSORS:,} are read")
    data_start = 8 + len(text)
    tensors = [_tensor(path, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    _check_contiguous(path, tensors, data_start, size)
    digest = hashlib.sha256(text).hexdigest()
    return Header({info.name: info for info in tensors}, metadata, data_start, size, digest)


def layout(tensors: Iterable[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """The file that will hold `tensors`: (length and header bytes, {name: absolute offset}, file size).

    Byte for byte what the safetensors library writes: widest types first, then by name, padded to eight bytes. Of
    several metadata entries the given order is kept, where the library's differs from run to run.

    >>> head, offsets, size = layout([TensorSpec("b", DTYPES["F32"], (2,)), TensorSpec("a", DTYPES["F64"], ())], {})
    >>> offsets["a"] == len(head), offsets["b"] - offsets["a"], size - len(head)
    (True, 8, 16)
    """
    rank = {code: position for position, code in enumerate(reversed(DTYPES))}
    ordered = sorted(tensors, key=lambda spec: (rank[spec.dtype.code], spec.name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    end = 0
    for spec in ordered:
        if spec.name in starts or spec.name == "__metadata__":
            raise ValueError(f"the name {printable(spec.name)} cannot be written twice or is reserved")
        starts[spec.name] = end
        end += spec.nbytes
        offsets = [starts[spec.name], end]
        entries[spec.name] = {"dtype": spec.dtype.code, "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}, len(head) + end


def _header_text(path: Path, fd: int, size: int) -> bytes:
    start = read_at(path, fd, 0, min(size, 64))
    if size < 8:
        _refuse_container(path, start, f"is {size} bytes long, too short to be a safetensors file")
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        _refuse_container(path, start, f"declares a header of {length:,} bytes but is only {size:,} bytes long")
    if length > MAX_HEADER:
        # The same limit as clients of the Hub: a header beyond it could not be read from there either.
        found = f"has a header of {length:,} bytes; at most {MAX_HEADER:,} are read, as clients of the Hub do"
        _refuse_container(path, start, found, "rewrite the file without padding, or in several shards")
    if start[8:9] != b"{":
        _refuse_container(path, start, "has a header that does not begin with {")
    return read_at(path, fd, 8, length)


def _refuse_container(path: Path, start: bytes, found: str, hint: str = _DAMAGED) -> NoReturn:
    for magic, kind, remedy in _IMPOSTORS:
        if start.lower().startswith(magic):
            raise InvalidInput(f"{place(path)}: is {kind}", remedy)
    raise InvalidInput(f"{place(path)}: {found}", hint)


def _parse_json(path: Path, text: bytes) -> dict[str, object]:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique_pairs)
        # Half of a surrogate pair can be escaped in JSON but never written again.
        "".join(entries).encode()
    except DuplicateKey as error:
        fact = f"{place(path)}: the header names {printable(error.key)} twice"
        raise InvalidInput(fact, "two programs could read two different models from it; write the file again") from None
    except RecursionError:
        raise InvalidInput(f"{place(path)}: the header is nested too deeply to be read", _DAMAGED) from None
    except UnicodeError:
        raise InvalidInput(f"{place(path)}: the header is not UTF-8 text", _DAMAGED) from None
    except ValueError as error:
        raise InvalidInput(f"{place(path)}: the header is not valid JSON: {printable(error)}", _DAMAGED) from None
    return dict(entries)


def _metadata(path: Path, found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        raise InvalidInput(f"{place(path)}: __metadata__ is not an object", _DAMAGED)
    for key, value in found.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{place(path)}: __metadata__ holds no text under {printable(key)}", _DAMAGED)
    return found


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        _refuse_tensor(path, name, "its entry is not an object")
    code = entry.get("dtype")
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        _refuse_tensor(path, name, f"unknown dtype {printable(code)}")
    if dtype.torch_name is None:
        _refuse_tensor(path, name, f"dtype {code} cannot be represented in torch", "convert it to another dtype first")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _natural_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse_tensor(path, name, f"shape {printable(shape)} is not a list of at most {MAX_DIMENSIONS} whole numbers")
    if not _natural_numbers(offsets) or len(offsets) != 2:
        _refuse_tensor(path, name, f"data_offsets {printable(offsets)} are not two whole numbers")
    # Zeros do not excuse absurd dimensions: strides are products of the others.
    bits = math.prod(shape) * dtype.bits
    if (bits or math.prod(filter(None, shape)) * dtype.bits) > _MAX_BITS:
        _refuse_tensor(path, name, f"shape {printable(shape)} is too large for any machine")
    nbytes = offsets[1] - offsets[0]
    if bits % 8:
        _refuse_tensor(path, name, f"shape {printable(shape)} of {dtype.bits}-bit elements does not fill whole bytes")
    if bits // 8 != nbytes:
        found = f"shape {printable(shape)} of {code} takes {bits // 8:,} bytes, its offsets span {nbytes:,}"
        _refuse_tensor(path, name, found)
    return TensorInfo(name, dtype, tuple(shape), path, data_start + offsets[0], nbytes)


def _natural_numbers(found: object) -> TypeGuard[list[int]]:
    if not isinstance(found, list):
        return False
    for number in found:  # noqa: SIM110 - a generator costs more for each of many thousand entries
        if type(number) is not int or number < 0:
            return False
    return True


def _refuse_tensor(path: Path, name: str, found: str, hint: str = _DAMAGED) -> NoReturn:
    raise InvalidInput(f"{place(path)}: tensor {printable(name)}: {found}", hint)


def _check_contiguous(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    end = data_start
    for info in tensors:
        if info.offset < end:
            _refuse_tensor(path, info.name, "its bytes overlap those of another tensor")
        if info.offset > end:
            _refuse_tensor(path, info.name, f"there is a hole of {info.offset - end:,} bytes before it")
        end += info.nbytes
    if end > size:
        cut = next(info for info in tensors if info.offset + info.nbytes > size)
        found = f"the file ends before it: {size:,} bytes where {end:,} are declared"
        _refuse_tensor(path, cut.name, found, "the download was cut short; download the file again")
    if end < size:
        raise InvalidInput(f"{place(path)}: {size - end:,} bytes follow after the last tensor", _DAMAGED)
