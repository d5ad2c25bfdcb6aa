"""Writing tensors that are there already, as generated ones are written: what was selected, finished or merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.targets.target import TargetSpec

from .output import Sample, Written, write_sample
from .stream import Outline


@dataclass(frozen=True)
class Held:
    """Tensors (*shape) by slot, in the place of a model that would decode them. Nothing in it depends on seeds."""

    weights: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where they are, the first telling for all."""
        return next(iter(self.weights.values())).device

    def codes(self, condition: Condition, spec: TargetSpec, seeds: Sequence[int], first: int = 0) -> Tensor:
        """None are needed. InvalidInput, naming it, for a tensor of the target that is missing, or of another shape."""
        for slot in spec.slots:
            found = self.weights.get(slot.name)
            if found is None or tuple(found.shape) != slot.shape:
                told = "is missing" if found is None else f"is {list(found.shape)}, not {list(slot.shape)}"
                raise InvalidInput(f"tensor {printable(slot.name)} {told}", "give all tensors of the target")
        return torch.empty(1, 1, 0, device=self.device)

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """(1, S, *shape)."""
        return torch.stack([self.weights[spec.slots[i].name] for i in group])[None]


def write_held(
    sample: Sample,
    weights: Mapping[str, Tensor],
    made: Mapping[str, object],
    *,
    threads: int = 1,
    force: bool = False,
    tell: Callable[[int], None] = lambda count: None,
) -> Written:
    """Write these weights in the place of what would be drawn for a sample; `made` says what they are, for its record.

    Buffers of the target that are among them are written too, in place of their fill. Raises as `write_sample` does.
    """
    outline = with_buffers(sample.outline, weights)
    generation = sample.generation.model_copy(update={"made": dict(made)})
    return write_sample(
        replace(sample, model=Held(weights), outline=outline, generation=generation), threads, force, tell
    )


def with_buffers(outline: Outline, values: Mapping[str, Tensor]) -> Outline:
    """The same outline, with buffers of these values."""
    known = {buffer.name for buffer in outline.spec.buffers} & set(values)
    if not known:
        return outline
    buffers = tuple(replace(b, fill=None) if b.name in known else b for b in outline.spec.buffers)
    own = {**(outline.own or {}), **{name: values[name] for name in known}}
    return replace(outline, spec=replace(outline.spec, buffers=buffers), own=own)
