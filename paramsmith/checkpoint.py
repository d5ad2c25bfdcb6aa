"""A model as names and byte ranges: headers are read and checked in full, data only when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from paramsmith.companions import companion_names
from paramsmith.errors import InvalidInput, ParamsmithError, printable
from paramsmith.header import TensorInfo
from paramsmith.hub import SCHEME, Reference, Snapshot
from paramsmith.inputs import place
from paramsmith.model_config import ModelConfig, check_config, read_config, tied_names
from paramsmith.progress import Progress
from paramsmith.tensorfiles import HubFile, TensorFile, TensorReader
from paramsmith.weightfiles import WeightFiles, find_weights, gather_tensors

if TYPE_CHECKING:
    from paramsmith.remote import RemoteFolder, Window


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
        self._opened: dict[Path, TensorFile] = {}
        self._remote: RemoteFolder | None = None
        self._window: Window | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Open a model folder, one safetensors file, or a model of the Hub. InvalidInput names what is wrong.

        A folder needs its config.json, which is held against the tensors; a file given by itself is a bare state dict.
        Of a model of the Hub only headers are fetched; its weights come with `fetch`, or when they are first read.
        """
        label = os.fspath(path)
        reference = Reference.parse(label)
        checkpoint = cls(label, Path(label))
        try:
            if reference is not None:
                checkpoint._reach(reference)
            checkpoint._read(find_weights(checkpoint.path if reference else label))
        except BaseException as problem:
            checkpoint.close()
            if isinstance(problem, ParamsmithError):
                checkpoint._explain(problem)
            raise
        if checkpoint._remote is not None:
            checkpoint.warnings = [checkpoint._named(warning) for warning in checkpoint.warnings]
            checkpoint.warnings += checkpoint._remote.warnings
        return checkpoint

    @property
    def snapshot(self) -> Snapshot | None:
        """What the Hub's repository holds, for a model that is there."""
        return self._remote.snapshot if self._remote else None

    @property
    def pinned(self) -> str | None:
        """The reference of a model of the Hub, with the commit that is read."""
        return str(self._remote.reference) if self._remote else None

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
        for opened in self._opened.values():
            opened.check_unchanged()

    def missing(self, names: Iterable[str]) -> int:
        """Bytes to download before these tensors can be read."""
        return self._remote.missing(self._files(names)) if self._remote else 0

    def fetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Have the files of these tensors on this machine, verified. Failed says which could not be fetched."""
        if self._remote is not None:
            files = self._files(names)
            self._remote.fetch(files, progress)
            for file in (self._opened[path] for path in files):
                if isinstance(file, HubFile):
                    file.arrive()

    def fetch_companions(self) -> None:
        """Have the tokenizer and the like beside the weights."""
        if self._remote is not None and self.folder is not None:
            self._remote.fetch_beside(companion_names(self._remote.names))

    def whole_folder(self, weights: bool = True) -> Path | None:
        """The folder with all that running the model needs, fetched from the Hub if it is there; None for a file.

        Without its weights, if they are not wanted. It stays when the checkpoint is closed.
        """
        if self._remote is None or self.folder is None:
            return self.folder
        beside = [name for name in self._remote.names if name.endswith((".json", ".txt")) and "/" not in name]
        files = [path.name for path in self._opened] if weights else []
        return self._remote.fetch_folder([*files, *sorted({*beside, *companion_names(self._remote.names)})])

    def stream(self, names: Sequence[str], folder: Path) -> int:
        """Keep no weights: each file is on the disk of `folder` only while tensors in it are read, in this order.

        Returns the most bytes that are there at once.
        """
        from paramsmith.remote import Window, at_once

        if self._remote is None:
            return 0
        order = [info.file for name in names if (info := self.info(name)) is not None]
        limit = at_once(order) + 1  # workers are not all at one place
        self._window = Window(self._remote, limit, folder)
        for path in set(order):
            file = self._opened[path]
            if isinstance(file, HubFile) and not path.is_symlink():
                file.stream(self._window.lend)
        sizes = sorted((self._opened[path].header.size for path in set(order)), reverse=True)
        return sum(sizes[:limit])

    def close(self) -> None:
        """Close the files; reading is no longer possible."""
        opened, self._opened = self._opened, {}
        for file in opened.values():
            file.close()
        for held in (self._window, self._remote):
            if held is not None:
                held.close()

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
        if self._remote is not None:
            self._remote.read_heads(found.files)
        for path in found.files:
            self._opened[path] = self._remote.open(path) if self._remote else TensorFile(path)
        headers = {path: opened.header for path, opened in self._opened.items()}
        self.tensors, self.warnings = gather_tensors(self.path, found, headers)
        if self.config is not None:
            check_config(self.config, self.tensors)
        self.metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
        self._resolve_ties()

    def _reach(self, reference: Reference) -> None:
        from paramsmith.remote import RemoteFolder

        self._remote = RemoteFolder(reference)
        self.path = self._remote.path

    def _files(self, names: Iterable[str]) -> list[Path]:
        found = (info.file for name in names if (info := self.info(name)) is not None)
        return list(dict.fromkeys(found))

    def _named(self, text: str) -> str:
        """A message with the reference in it instead of a temporary folder."""
        from paramsmith.remote import shorten

        return shorten(text, self._remote.folder, self.label) if self._remote else text

    def _explain(self, problem: ParamsmithError) -> None:
        problem.fact = self._named(problem.fact)
        if isinstance(problem, InvalidInput):
            if self._remote is not None:
                problem.hint = problem.hint.replace(str(self._remote.folder), SCHEME + self.label.removeprefix(SCHEME))
            problem.hint = problem.hint or "check the files of the model, or download it again"
        if self._remote is None and Reference.parse(self.label) and not self.label.startswith(SCHEME):
            problem.hint = "; ".join(filter(None, ("there is no such folder here", problem.hint)))

    def _resolve_ties(self) -> None:
        self.aliases = tied_names(self.config, self.tensors, self.metadata)
        for alias, kept in self.aliases.items():
            if self.tensors.pop(alias, None) is not None:
                names = f"{printable(alias)} is left out, as config.json ties it to {printable(kept)}"
                self.warnings.append(f"{place(self.path)}: the stored copy {names}")


def _without_config(folder: Path, files: tuple[Path, ...]) -> InvalidInput:
    hint = "download it too"
    if len(files) == 1:
        hint += f"; to use the weights without it, as a bare state dict, name the file: {place(files[0])}"
    return InvalidInput(f"{place(folder)}: config.json is missing", hint)
