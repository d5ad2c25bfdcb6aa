"""A model as names and byte ranges: headers are read and checked in full, data only when asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from paramsmith.errors import Failed, InvalidInput, printable
from paramsmith.header import Header, TensorInfo, parse_header
from paramsmith.inputs import open_regular, place
from paramsmith.model_config import ModelConfig, check_config, read_config, tied_names
from paramsmith.weightfiles import WeightFiles, find_weights, gather_tensors


class Checkpoint:
    """The opened headers of one model, and thread-safe reading of its tensors.

    `tensors` holds every stored tensor under its name; `aliases` the names of tied weights, which read the tensor
    they are tied to. `metadata` is what the files say beside their tensors; `warnings` are sentences for the user
    about what was found.
    """

    label: str
    path: Path
    folder: Path | None
    tensors: dict[str, TensorInfo]
    aliases: dict[str, str]
    config: ModelConfig | None
    metadata: dict[str, str]
    warnings: list[str]

    def __init__(self, label: str, path: Path) -> None:
        self.label = label
        self.path = path
        self.folder = None
        self.tensors = {}
        self.aliases = {}
        self.config = None
        self.metadata = {}
        self.warnings = []
        self._opened: dict[Path, _File] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Open a model folder, a folder of the Hub's cache, or one safetensors file. InvalidInput names what is wrong.

        A folder needs its config.json, which is held against the tensors; a file given by itself is a bare state dict.
        """
        label = os.fspath(path)
        checkpoint = cls(label, Path(label))
        try:
            checkpoint._read(find_weights(label))
        except BaseException as problem:
            checkpoint.close()
            if isinstance(problem, InvalidInput):
                problem.hint = problem.hint or "check the files of the model, or download it again"
            raise
        return checkpoint

    def info(self, name: str) -> TensorInfo | None:
        """The tensor that `name` reads, through ties; None when the model has no such name."""
        return self.tensors.get(self.aliases.get(name, name))

    def reader(self, name: str) -> TensorReader:
        """What reads one tensor again and again; ValueError when the model has no such name."""
        info = self.info(name)
        if info is None or info.file not in self._opened:
            raise ValueError(f"{printable(name)} was never there, or is read after its file was closed")
        return TensorReader(self._opened[info.file], info)

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a tensor from `start` on. Failed when the file has become shorter."""
        self.reader(name)(start, buffer)

    def fingerprint(self) -> dict[str, object]:
        """What tells this model from another, as JSON: per file its size, time of change and digest of the header."""
        found: dict[str, object] = {path.name: opened.identity() for path, opened in self._opened.items()}
        if self.config is not None:
            found["config.json"] = self.config.digest
        return found

    def check_unchanged(self) -> None:
        """Failed, naming the file, when one is no longer what it was when it was opened."""
        for path, opened in self._opened.items():
            status = os.fstat(opened.fd)
            if (status.st_size, status.st_mtime_ns) != (opened.header.size, opened.mtime_ns):
                raise Failed(f"{place(path)}: changed while being read", "leave the inputs alone during a run")

    def close(self) -> None:
        """Close the files; reading is no longer possible."""
        opened, self._opened = self._opened, {}
        for file in opened.values():
            os.close(file.fd)
            file.fd = -1

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, found: WeightFiles) -> None:
        self.folder = found.folder
        if found.folder is not None:
            self.config = read_config(found.folder)
            if self.config is None:
                raise _without_config(found.folder, found.files)
        for path in found.files:
            self._open_file(path)
        headers = {path: opened.header for path, opened in self._opened.items()}
        self.tensors, self.warnings = gather_tensors(self.path, found, headers)
        if self.config is not None:
            check_config(self.config, self.tensors)
        self.metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
        self._resolve_ties()

    def _open_file(self, path: Path) -> None:
        fd, status = open_regular(path)
        try:
            header = parse_header(path, fd)
        except BaseException:
            os.close(fd)
            raise
        self._opened[path] = _File(fd, header, status.st_mtime_ns)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def _resolve_ties(self) -> None:
        self.aliases = tied_names(self.config, self.tensors, self.metadata)
        for alias, kept in self.aliases.items():
            if self.tensors.pop(alias, None) is not None:
                names = f"{printable(alias)} is left out, as config.json ties it to {printable(kept)}"
                self.warnings.append(f"{place(self.path)}: the stored copy {names}")


class TensorReader:
    """Reads one tensor's bytes from its open file: call it with the first byte and a buffer to fill. Thread-safe."""

    __slots__ = ("_end", "_file", "_info")

    def __init__(self, file: _File, info: TensorInfo) -> None:
        self._file, self._info, self._end = file, info, info.offset + info.nbytes

    def __call__(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer`, writable bytes, from byte `start` of the tensor on; Failed when the file shrank."""
        view, offset = buffer, self._info.offset + start
        if start < 0 or offset + view.nbytes > self._end or self._file.fd < 0:
            span = f"bytes {start} to {start + view.nbytes} of {printable(self._info.name)}"
            raise ValueError(f"{span} were never there, or are read after the file was closed")
        while view.nbytes:
            try:
                count = os.preadv(self._file.fd, [view], offset)
            except OSError as error:
                raise Failed(f"{self._place()}: {printable((error.strerror or str(error)).lower())}") from None
            if count == view.nbytes:
                return
            if count == 0:
                fact = f"{self._place()}: the file shrank while being read"
                raise Failed(fact, "leave the inputs alone during a run")
            view, offset = view.cast("B")[count:], offset + count

    def _place(self) -> str:
        return f"{place(self._info.file)}: tensor {printable(self._info.name)}"


@dataclass(slots=True)
class _File:
    """One file that is open for reading."""

    fd: int
    header: Header
    mtime_ns: int

    def identity(self) -> dict[str, object]:
        return {"size": self.header.size, "mtime_ns": self.mtime_ns, "header": self.header.digest}


def _without_config(folder: Path, files: tuple[Path, ...]) -> InvalidInput:
    hint = "download it too"
    if len(files) == 1:
        hint += f"; to use the weights without it, as a bare state dict, name the file: {place(files[0])}"
    return InvalidInput(f"{place(folder)}: config.json is missing", hint)
