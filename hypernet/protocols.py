"""What the parts of a generator are to each other: five small interfaces, and the data that passes between them.

B conditions at once, T slots of a target, S of them of one shape, codes of width d:

    encoder(condition, spec) -> codes (B, T, d), or (B, 1, d) where all slots share one code
    decoder(codes (B, S, d), slots) -> raw (B, S, *shape)
    weights = base(slots, seeds) + scale(raw, slots)                      (B, S, *shape)

The batch axis is always there. `slots` all have the same shape, role and class axis; they may be any of the slots that
share these, not only all of them.

Parts are registered in `paramsmith.parts`. An encoder, decoder, base or scale is an `nn.Module`, made as
`make(options, site)`; its learned tensors are its parameters. Any of them may also have

    check(spec)       raises InvalidInput for a target that the part cannot be used for, before anything is decoded;
                      `generate` captures the graph of a target only for an encoder that has it
    begin(options)    of a base: called when a generator is built, and not when a saved one is loaded

What a part draws in its constructor comes from torch's own generator, which is seeded for it; so does what it draws in
training, such as dropout. When weights are generated nothing is random but the base, by the seeds that it is given.

What only samplers have, codecs and priors, is in `latents`.

An objective is made as `make(options, hypernetwork, source)`, a preset as `make(options, site)`, a family of
architectures as `make(options)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from paramsmith.params import Params

from .targets.target import Slot, TargetSpec
from .tokens.layout import Layout

Batch: TypeAlias = Mapping[str, Tensor]  # tensors by name
Condition: TypeAlias = Mapping[str, Tensor]  # every tensor (B, ...); empty where nothing is asked for but the target
Run: TypeAlias = Callable[..., Tensor]  # a target with its weights: inputs -> outputs


@dataclass(frozen=True)
class Site:
    """Where a part is built: the width of the codes, the target if it is always the same one, the condition's shapes.

    `condition` gives the shape of each tensor of one condition, without the batch axis; 0 is any length. A sampler's
    parts also learn how its target is cut into tokens, and its prior the shape (L, D) of a latent and how many features
    its positions have.
    """

    width: int
    spec: TargetSpec | None = None
    condition: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layout: Layout | None = None
    latent: tuple[int, int] | None = None
    features: int = 0


class Encoder(Protocol):
    """What is asked for, as codes."""

    def __call__(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, T, d) with one code a slot of `spec`, or (B, 1, d). B is 1 for an empty condition.

        Numbers that come from the command line or from JSON are fp32, labels too.
        """
        ...


class Decoder(Protocol):
    """Codes as raw tensors."""

    def __call__(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        ...


class Base(Protocol):
    """What raw tensors are added to. A base of zeros is neutral: its norm scales are 1."""

    def __call__(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(B, S, *shape) where it depends on the seeds, one a sample, else (1, S, *shape)."""
        ...


class Scale(Protocol):
    """Raw tensors, of about unit variance, become differences from the base, of the size that suits their role."""

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
    of `training.course.Course` that differ from its defaults.
    """

    width: int
    encoder: Chosen
    decoder: Chosen
    base: Chosen
    scale: Chosen
    objective: Chosen
    fixed: bool = True
    course: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplerDesign:
    """What a preset stands for that draws weights: the parts of a sampler, and how it is trained, as in `Design`.

    `tokens` has fields of `tokens.options.Tokens`. `condition`: the shapes that it can be asked for, where they are not
    those that it is trained on.
    """

    width: int
    tokens: Mapping[str, object]
    encoder: Chosen
    codec: Chosen
    prior: Chosen
    objective: Chosen = Chosen("stages")
    condition: Mapping[str, tuple[int, ...]] | None = None
    course: Mapping[str, object] = field(default_factory=dict)


class Preset(Protocol):
    """A registered generator: `preset(options, site)` gives its design. `site.width` is 0: the preset decides it."""

    def __call__(self, options: Params, site: Site, /) -> Design | SamplerDesign:
        """The design for a target (None where it varies) and a condition."""
        ...


@dataclass(frozen=True)
class Episode:
    """One draw from a task: a target, what is asked for, and batches to train on. Tensors have no task axis.

    `support` is what a meta-learner adapts on, `query` what it is judged by; others use `query` alone. `task` names
    what several draws may be of, such as a set of classes: networks for one are never on both sides of a split.
    """

    target: Target
    condition: Condition
    query: Batch
    support: Batch = field(default_factory=dict)
    task: str = ""


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


class Classifying(Protocol):
    """What a task may have besides, where the query has labels `y` (n): then mistakes can be compared."""

    def logits(self, run: Run, batch: Batch) -> Tensor:
        """(n, k): what one target says of each example. Must bear `torch.vmap`."""
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
    """What training minimises.

    What is random in a step comes from `rng`, or from torch's own generators, which begin anew with every step: a run
    can be resumed at any.

    It may also have

        optimisers() -> {turn: {field: value}}      fields of the course that a turn has its own values for
        over(step) -> names of turns                those that are over at a step: averages become their weights
        told() -> {name: number}                    more numbers for a line of metrics
        state() -> {name: tensor}, restore(held)    what it changes itself, besides parameters
        result() -> a mapping or a dataclass        what it found besides the weights, saved as result.json
    """

    def turns(self) -> Mapping[str, Iterable[torch.nn.Parameter]]:
        """Parameters by turn: each turn has an optimiser of its own. Most have one turn."""
        ...

    def turn(self, step: int) -> str:
        """Whose turn a step is."""
        ...

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The loss of a step, a scalar to call backward on."""
        ...
