"""A base with generated tensors in it, as a whole model; what is not generated is copied in pieces, byte by byte."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.companions import output_config
from paramsmith.device import one_thread_an_operation, parse_bytes
from paramsmith.header import TensorSpec
from paramsmith.hypernet.model import chunks
from paramsmith.hypernet.stored import read_tensor
from paramsmith.hypernet.targets.architecture import relabelled
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.memory import as_bytes
from paramsmith.shards import Layout, plan_files
from paramsmith.staging import Writer
from paramsmith.stream import Scratch, run_workers

from .base import Base
from .cards import onto_card
from .changes import Change
from .output import CONFIG, Sample
from .provenance import Form, Generation
from .samples import finished
from .stream import SHARD_SIZE

_PIECE = 1 << 24  # bytes copied at once
_DIFFUSERS = "diffusion_pytorch_model.safetensors"


class Piece(NamedTuple):
    """Bytes of a tensor that are copied."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Onto:
    """What of a base is made anew of a sample. `classes`: of the result, where they are others than the base's."""

    form: Form
    base: Base
    changes: tuple[Change, ...]
    classes: int | None = None

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors of the result, in the order of the base and stored as there."""
        shapes = {change.name: change.shape for change in self.changes}
        infos = self.base.tensors.values()
        return tuple(TensorSpec(info.name, info.dtype, shapes.get(info.name, info.shape)) for info in infos)

    def shaped(self, sample: Sample) -> Sample:
        """The base with this sample in it."""
        told = sample.generation.model_copy(update={"form": self.form, "base": self.base.origin})
        where = (sample.path, self.base.folder, sample.shard_size)
        return OntoSample(sample.model, sample.outline, sample.condition, told, *where, onto=self)


@dataclass(frozen=True)
class OntoSample(Sample):
    """A sample that is written into a base."""

    onto: Onto = field(kw_only=True)

    def planned(self, metadata: Mapping[str, str]) -> Layout:
        """The files, with these words in them."""
        base = self.onto.base
        single = self.path.name if self.path.suffix == ".safetensors" else _DIFFUSERS if base.is_diffusers else None
        most = parse_bytes(self.shard_size or SHARD_SIZE)
        return plan_files(self.onto.tensors, most, single, {**base.metadata, **metadata})

    @property
    def stored(self) -> Sequence[TensorSpec]:
        """All tensors of the base."""
        return self.onto.tensors

    @property
    def held(self) -> int:
        """Pairs wait for each other, and what is copied passes through."""
        paired = {slot for change in self.onto.changes if change.how == "pair" for slot in change.slots}
        return 4 * sum(prod(slot.shape) for slot in self.outline.spec.slots if slot.name in paired) + _PIECE

    def card(self, whole: Generation) -> bytes:
        """README.md."""
        return onto_card(whole, [change.name for change in self.onto.changes], len(self.onto.tensors), self._name)

    def described(self) -> dict[str, bytes]:
        """config.json of the base, for the classes that there are."""
        config = self.onto.base.config
        if config is None:
            return {}
        if self.onto.classes is not None:
            raw = relabelled(config.raw, self.onto.classes, "the base")
            config = replace(config, raw=raw)
        return {CONFIG: output_config(config, None, None, None)}

    def fill(self, writer: Writer, threads: int, tell: Callable[[int], None]) -> None:
        """Generate what is changed, and copy the rest. The bytes are the same whatever the number of threads.

        Failed where a value is not finite, or the base changed.
        """
        with self.onto.base.reading() as checkpoint:
            making = _Making(self, writer, checkpoint, tell)
            jobs: list[tuple[int, ...] | Piece] = [*making.groups(), *making.pieces()]
            run_workers(jobs, making.work, threads, self.model.device)

    @property
    def _name(self) -> str:
        return self.path.absolute().name


class _Making:
    """One sample on its way into the files."""

    def __init__(self, sample: OntoSample, writer: Writer, checkpoint: Checkpoint, tell: Callable[[int], None]) -> None:
        self.sample, self.writer, self.checkpoint, self.tell = sample, writer, checkpoint, tell
        self.spec: TargetSpec = sample.outline.spec
        self.sizes = {tensor.name: tensor.nbytes for tensor in sample.onto.tensors}
        self.of_slot = {slot: change for change in sample.onto.changes for slot in change.slots}
        self.waiting: dict[str, dict[str, Tensor]] = {}  # of pairs, by the tensor of the base
        self.lock = threading.Lock()
        with one_thread_an_operation(), torch.no_grad():
            number = sample.generation.asked.index
            self.codes = sample.model.codes(sample.condition, self.spec, [sample.seed], number)
        if self.codes.is_cuda:  # each worker has a stream of its own
            torch.cuda.synchronize(self.codes.device)

    def groups(self) -> list[tuple[int, ...]]:
        """The slots that are generated together, but for those that an interrupted run has done."""
        done = {change.name for change in self.sample.onto.changes if self._done(change.name, 0, None)}
        for name in done:
            self.tell(self.sizes[name])

        def wanted(group: Sequence[int]) -> bool:
            return any(self.of_slot[self.spec.slots[i].name].name not in done for i in group)

        return [group for group in chunks(self.spec) if wanted(group)]

    def pieces(self) -> list[Piece]:
        """What is copied."""
        changed = {change.name for change in self.sample.onto.changes}
        kept = [tensor for tensor in self.sample.onto.tensors if tensor.name not in changed]
        return [
            Piece(tensor.name, start, min(start + _PIECE, tensor.nbytes))
            for tensor in kept
            for start in range(0, tensor.nbytes, _PIECE)
        ]

    def work(self, job: tuple[int, ...] | Piece, scratch: Scratch) -> None:
        """Generate a group, or copy a piece."""
        if isinstance(job, Piece):
            self._copy(job, scratch)
            return
        with torch.inference_mode(False), torch.no_grad():
            values = self.sample.model.decoded(self.codes, job, self.spec, [self.sample.seed])[0]
            for i, made in zip(job, values.unbind(0), strict=True):
                self._arrived(self.spec.slots[i].name, made.cpu())

    def _copy(self, piece: Piece, scratch: Scratch) -> None:
        name, start, end = piece
        if not self._done(name, start, end):
            scratch.take("copy", (end - start,), torch.uint8, host=True)
            held = scratch.bytes_of("copy")[: end - start]
            self.checkpoint.read_into(name, start, held)
            self.writer.write(name, start, held)
            self.writer.finish([(name, start, end)])
        self.tell(end - start)

    def _arrived(self, slot: str, values: Tensor) -> None:
        """A generated tensor: into its place, or, of a pair, kept until the other is there."""
        change = self.of_slot[slot]
        if self._done(change.name, 0, None):
            return
        with self.lock:
            there = self.waiting.setdefault(change.name, {})
            there[slot] = values if len(change.slots) == 1 else values.clone()
            if len(there) < len(change.slots):
                return
            del self.waiting[change.name]
        self._put(change, there)

    def _put(self, change: Change, values: Mapping[str, Tensor]) -> None:
        info = self.sample.onto.base.tensors[change.name]
        old = None if change.how == "replace" else read_tensor(self.checkpoint, change.name)
        slot = next(slot for slot in self.spec.slots if slot.name == change.slots[0])
        slot = replace(slot, name=change.name, shape=change.shape)
        made = finished(slot, change.made(values, old), info.dtype)
        self.writer.write(change.name, 0, as_bytes(made))
        self.writer.finish([(change.name, 0, made.nbytes)])
        self.tell(made.nbytes)

    def _done(self, name: str, start: int, end: int | None) -> bool:
        return self.writer.is_finished(name, start, self.sizes[name] if end is None else end)
