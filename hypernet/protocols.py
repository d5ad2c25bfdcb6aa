"""What the parts of a generator are to each other: five small interfaces, and the data that passes between them.

B conditions at once, T slots of a target, S of them of one shape, codes of width d:

    encoder(condition, spec) -> codes (B, T, d), or (B, 1, d) where all slots share one code
    decoder(codes (B, S, d), slots) -> raw (B, S, *shape)
    weights = base(slots, seeds) + scale(raw, slots)                      (B, S, *shape)

The batch axis is always there. Every part is an `nn.Module`, registered in `paramsmith.parts` and made as
`make(options, site)`; its learned tensors are its parameters. `slots` all have the same shape, role and class axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from paramsmith.params import Params

from .targets.target import Slot, TargetSpec

Batch: TypeAlias = Mapping[str, Tensor]  # tensors by name
Condition: TypeAlias = Mapping[str, Tensor]  # every tensor (B, ...); none where nothing is asked for but the target
Run: TypeAlias = Callable[..., Tensor]  # a target with its weights: inputs -> outputs


@dataclass(frozen=True)
class Site:
    """Where a part is built: the width of the codes, the target if it is always the same one, the condition's shapes.

    `condition` gives the shape of each tensor of one condition, without the batch axis.
    """

    width: int
    spec: TargetSpec | None = None
    condition: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Encoder(Protocol):
    """What is asked for, as codes."""

    def __call__(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, T, d) with one code a slot of `spec`, or (B, 1, d). B is 1 for an empty condition."""
        ...


class Decoder(Protocol):
    """Codes as raw tensors. It may have `check(spec)`, which raises InvalidInput for what it cannot make."""

    def __call__(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        ...


class Base(Protocol):
    """What raw tensors are added to. A base of zeros is neutral: its norm scales are 1."""

    def __call__(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(B, S, *shape) where it depends on the seeds, one a sample, else (1, S, *shape)."""
        ...


class Scale(Protocol):
    """Raw tensors, of about unit variance, brought to the size that suits their role, as a difference from the base."""

    def __call__(self, raw: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, *shape) -> (B, S, *shape)."""
        ...


@dataclass(frozen=True)
class Chosen:
    """A part by name, and its options as plain data."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Design:
    """What a preset stands for: its parts, what training minimises, and how it is trained unless told otherwise.

    `fixed`: the generator is for the one target of its site, which is saved with it; else for any. `course` has fields
    of `training.Course` that differ from its defaults.
    """

    width: int
    encoder: Chosen
    decoder: Chosen
    base: Chosen
    scale: Chosen
    objective: Chosen
    fixed: bool = True
    course: Mapping[str, object] = field(default_factory=dict)


class Preset(Protocol):
    """A registered generator: `preset(options, site) -> Design`. `site.width` is 0: the preset decides it."""

    def __call__(self, options: Params, site: Site, /) -> Design:
        """The design for a target (None where it varies) and a condition."""
        ...


@dataclass(frozen=True)
class Episode:
    """One draw from a task: a target, what is asked for, and batches to train on. Tensors have no task axis.

    `support` is what a meta-learner adapts on, `query` what it is judged by; others use `query` alone.
    """

    target: Target
    condition: Condition
    query: Batch
    support: Batch = field(default_factory=dict)


class Task(Protocol):
    """What generators are trained for and judged by."""

    def episode(self, rng: torch.Generator, split: str = "train") -> Episode:
        """A draw that depends on the state of `rng` alone.

        `split` is "train"; "test": an unseen target or condition, `support` all rows that may be trained on, `query`
        unseen rows; or "zoo": a target and condition of training, with data as of "test".
        """
        ...

    def loss(self, run: Run, batch: Batch) -> Tensor:
        """The loss, a scalar, of one target on one batch: `run(inputs)` gives the outputs. Must bear `torch.vmap`."""
        ...

    def score(self, run: Run, batch: Batch) -> Tensor:
        """What a table shows, a scalar, higher being better: accuracy, PSNR."""
        ...


class Target(Protocol):
    """A target that can be run; `calling.Target` is the one there is."""

    @property
    def spec(self) -> TargetSpec:
        """What it consists of."""
        ...

    def call(self, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        """Outputs with these weights, by name as in the spec; the module itself is never touched."""
        ...

    def call_many(self, weights: Mapping[str, Tensor], *inputs: Tensor, shared: bool = False) -> Tensor:
        """Outputs (B, ...) with weights (B, *shape) and inputs (B, ...), or one input for all when `shared`."""
        ...


class Objective(Protocol):
    """What training minimises. Everything random in a step comes from `rng`, so that a run can be resumed at any."""

    def turns(self) -> Mapping[str, Iterable[torch.nn.Parameter]]:
        """Parameters by turn: each turn has an optimiser of its own. Most have one turn."""
        ...

    def turn(self, step: int) -> str:
        """Whose turn a step is."""
        ...

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The loss of a step, a scalar to call backward on."""
        ...
