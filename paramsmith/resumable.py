"""An output that takes long to compute: what is done is kept now and then, and the same command goes on there.

Beside the target `out` lies `.out.partial` (see destination.py) with `state.safetensors`, replaced as a whole, and
finished parts, written once. Killed at any moment, the target is as it was and the rerun loses the time since `save`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.destination import Destination
from paramsmith.disk import check_space, sync_data, sync_folder, write_at, write_error
from paramsmith.dtypes import from_torch
from paramsmith.errors import InvalidInput
from paramsmith.header import TensorSpec, layout
from paramsmith.memory import as_bytes

INTERVAL = 5.0  # seconds between two savings
_KEY = "paramsmith.state"
_CHUNK = 1 << 22


class Resumable:
    """A context manager around load, save and publish. `key` identifies the work: another key starts over.

    The output is one file, or, unless `single`, a folder: that of `begin_folder`, when `publish_folder` is called.
    Left without `publish`, the target stays as it was; what was saved stays only after a KeyboardInterrupt or a kill.
    """

    def __init__(self, target: Path, key: str, *, force: bool = False, single: bool = True) -> None:
        self._place = Destination(Path(target), force=force, single=single)
        self._key = key
        self._saved = time.monotonic()
        self._parts = 0

    def __enter__(self) -> Self:
        self._place.claim()
        try:
            if self._identity() != self._key:
                self._place.clear()
                self._write(self._place.staging / "key", [self._key.encode()])
            while self._part(self._parts).exists():
                self._parts += 1
        except BaseException as error:
            self._place.leave(keep=False)
            if isinstance(error, OSError):
                raise write_error(error, self._place.staging) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if interrupted and error is not None:
            error.add_note("the same command goes on from here")
        self._place.leave(keep=interrupted)

    @property
    def folder(self) -> Path:
        """Where files that are needed on the way may be kept; it goes when the work is done or has failed."""
        return self._place.staging

    def begin_folder(self) -> Path:
        """The folder that becomes the output, empty: what an interrupted run left there is gone."""
        shutil.rmtree(self._place.files, ignore_errors=True)
        self._place.files.mkdir()
        return self._place.files

    @property
    def parts(self) -> int:
        """How many parts are finished."""
        return self._parts

    def load(self) -> tuple[dict[str, Tensor], dict[str, object]] | None:
        """What was saved last: tensors and plain data; None where nothing was."""
        path = self._place.staging / "state.safetensors"
        if not path.exists():
            return None
        from safetensors.torch import load_file

        try:
            with Checkpoint.open(path) as file:
                plain: object = json.loads(file.metadata.get(_KEY, "null"))
        except (InvalidInput, ValueError):
            return None  # cut short by a lost disk: what it held is computed again
        return (load_file(path), plain) if isinstance(plain, dict) else None

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= INTERVAL

    def save(self, tensors: Mapping[str, Tensor], plain: Mapping[str, object]) -> None:
        """Keep the state of what is being computed, in place of what was saved before."""
        self._put(self._place.staging / "state.safetensors", tensors, {_KEY: json.dumps(plain)})
        self._saved = time.monotonic()

    def add_part(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep finished tensors of the output; the saved state has served and is forgotten."""
        self._put(self._part(self.parts), tensors, {})
        self._parts += 1
        (self._place.staging / "state.safetensors").unlink(missing_ok=True)

    def finished(self, number: int) -> dict[str, Tensor]:
        """The tensors of a finished part."""
        from safetensors.torch import load_file

        found: dict[str, Tensor] = load_file(self._part(number))
        return found

    def publish(self, metadata: Mapping[str, str]) -> None:
        """Make one safetensors file of all parts and put it in place."""
        with ExitStack() as stack:
            files = [stack.enter_context(Checkpoint.open(self._part(n))) for n in range(self._parts)]
            owners = {name: file for file in files for name in file.tensors}
            specs = [TensorSpec(i.name, i.dtype, i.shape) for file in files for i in file.tensors.values()]
            head, starts, size = layout(specs, {"format": "pt", **metadata})
            check_space(self._place.staging, size)

            def chunks() -> Iterator[memoryview]:
                yield memoryview(head)
                for name in sorted(starts, key=lambda name: (starts[name], owners[name].tensors[name].nbytes)):
                    nbytes = owners[name].tensors[name].nbytes
                    for start in range(0, nbytes, _CHUNK):
                        held = memoryview(bytearray(min(_CHUNK, nbytes - start)))
                        owners[name].read_into(name, start, held)
                        yield held

            self._publish(chunks())

    def publish_bytes(self, data: bytes) -> None:
        """Put a finished file in place."""
        self._publish(iter([memoryview(data)]))

    def publish_folder(self) -> None:
        """Put the folder of `begin_folder` in place."""
        for folder, _, names in os.walk(self._place.files):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    sync_data(file.fileno(), Path(folder, name))
            sync_folder(Path(folder))
        self._place.publish("")

    def _publish(self, chunks: Iterator[memoryview]) -> None:
        self._place.files.mkdir(exist_ok=True)
        self._write(self._place.files / self._place.target.name, chunks)
        sync_folder(self._place.files)
        self._place.publish(self._place.target.name)

    def _identity(self) -> str:
        try:
            return (self._place.staging / "key").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def _part(self, number: int) -> Path:
        return self._place.staging / f"part-{number:05d}.safetensors"

    def _put(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        specs = [TensorSpec(name, from_torch(t.dtype), tuple(t.shape)) for name, t in held.items()]
        head, starts, size = layout(specs, {"format": "pt", **metadata})
        check_space(self._place.staging, size)
        ordered = sorted(held, key=lambda name: (starts[name], held[name].nbytes))
        views = [memoryview(head), *(as_bytes(held[name]) for name in ordered if held[name].numel())]
        staged = path.with_suffix(".new")
        self._write(staged, views)
        os.replace(staged, path)
        sync_folder(path.parent)

    def _write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        fd = -1
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            at = 0
            for chunk in chunks:
                write_at(fd, chunk, at, path)
                at += len(chunk)
            sync_data(fd, path)
        except OSError as error:
            raise write_error(error, path) from error
        finally:
            if fd >= 0:
                os.close(fd)
