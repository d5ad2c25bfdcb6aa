"""What is asked of a generator, what will be written for it, and what was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.latents import PLAIN, Sampling
from paramsmith.hypernet.model import WeightModel
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import TargetSpec

from .conditions import one_of
from .draws import Draws
from .output import Sample, Written
from .provenance import Form, Generation, asked
from .sources import Source
from .stream import Outline

Named: TypeAlias = "str | os.PathLike[str] | Generator | WeightModel | Source"


class Shaping(Protocol):
    """What makes something else of a sample than a checkpoint of its own: see `forms`."""

    def shaped(self, sample: Sample) -> Sample:
        """The same sample, to be written so."""
        ...


@dataclass(frozen=True)
class Request:
    """What is asked of a generator, and how it is to be stored; see `generate`."""

    like: str | os.PathLike[str] | TargetSpec | None = None
    condition: Condition = field(default_factory=dict)
    n: int = 1
    seed: int = 0
    classes: int | None = None
    dtype: str | None = None
    shard_size: str | int | None = None
    threads: int | None = None
    device: str = "cpu"
    base: str | os.PathLike[str] | None = None
    form: Form = "checkpoint"
    alpha: float | None = None
    steps: int | None = None
    guidance: float = 1.0

    @property
    def how(self) -> Sampling:
        """How a sampler is to draw. InvalidInput for numbers out of range."""
        return Sampling(self.steps, self.guidance)


@dataclass(frozen=True)
class Report:
    """What was generated."""

    samples: tuple[Written, ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(sample.nbytes for sample in self.samples)


@dataclass(frozen=True)
class Outlook:
    """What a generation will write and take, found without generating anything. Sizes in bytes."""

    samples: int
    tensors: int
    parameters: int
    bytes_written: int
    files: tuple[str, ...]
    peak_memory: int
    threads: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A generation ready to run: everything was found right. `target`: what the architecture is called.

    `form`: what is made of a sample, where that is no checkpoint of its own.
    """

    source: Source
    outline: Outline
    condition: Condition
    count: int
    seed: int
    threads: int
    target: str
    classes: int | None = None
    dtype: str | None = None
    folder: Path | None = None
    shard_size: str | int | None = None
    warnings: tuple[str, ...] = ()
    form: Shaping | None = None
    how: Sampling = PLAIN

    @cached_property
    def draws(self) -> Draws:
        """What the tensors of all its samples come from."""
        return Draws(self.source.generator.model, self.condition, self.seed, self.how)

    def sample(self, index: int, path: Path) -> Sample:
        """One of its samples."""
        own = one_of(self.condition, index)
        told = asked(
            self.outline.spec,
            own,
            target=self.target,
            seed=self.seed,
            index=index,
            classes=self.classes,
            dtype=self.dtype,
            how=self.how,
        )
        device = self.draws.device
        generation = Generation(generator=self.source.origin, asked=told, device=device.type)
        moved = {name: tensor.to(device) for name, tensor in own.items()}
        sample = Sample(self.draws, self.outline, moved, generation, path, self.folder, self.shard_size)
        return sample if self.form is None else self.form.shaped(sample)

    def samples(self, output: Path) -> Iterator[Sample]:
        """All of them, one after the other: one at the output itself, several in numbered folders there."""
        for index in range(self.count):
            yield self.sample(index, output if self.count == 1 else output / str(index))
