"""What weights come from, of whatever kind: asked for a target, it gives tensors, all at once or piece by piece."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.params import Params, validated
from paramsmith.parts import Parts

from .latents import PLAIN, Sampling
from .protocols import Chosen, Condition
from .targets.statistics import with_statistics
from .targets.target import Slot, TargetSpec

CHUNK = 1 << 22  # numbers decoded at once when a target is streamed; fixed, so that the bytes are the same everywhere


class Decodes(Protocol):
    """What tensors come from: a `WeightModel`, or what stands for one."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def codes(self, condition: Condition, spec: TargetSpec, seeds: Sequence[int], first: int = 0) -> Tensor:
        """As `WeightModel.codes`."""
        ...

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """As `WeightModel.decoded`."""
        ...


class WeightModel(ModelMixin, ConfigMixin):
    """Codes for a condition, and weights from codes, for one target (`spec`) or for any (None).

    A kind has `codes` and `decoded`, and the registered parts that it consists of.
    """

    config_name = "config.json"  # type: ignore[assignment]  # the base declares it as None
    spec: TargetSpec | None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as in torch
        """A part, before the entry of the same name in the config, which diffusers would give."""
        modules: Mapping[str, nn.Module] = self.__dict__.get("_modules", {})
        return modules[name] if name in modules else super().__getattr__(name)

    @property
    def device(self) -> torch.device:
        """Where it computes; the base looks for hooks first, which takes longer than coding a small condition."""
        held: nn.Module = self
        first = next(chain(held.parameters(), held.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @abstractmethod
    def codes(
        self,
        condition: Condition,
        spec: TargetSpec,
        seeds: Sequence[int],
        first: int = 0,
        how: Sampling = PLAIN,
    ) -> Tensor:
        """(B, ...): what `decoded` makes weights of. B conditions, or one condition with B seeds.

        `first` is the number of the first of these samples: a kind may draw several side by side, each in its place.
        """

    @abstractmethod
    def check_sampling(self, how: Sampling) -> None:
        """InvalidInput where this model cannot draw so."""

    @abstractmethod
    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """The weights of one group of slots, (B, S, *shape), from the codes of all: a piece of `forward`."""

    def forward(
        self, condition: Condition, spec: TargetSpec | None = None, seeds: Sequence[int] = (0,)
    ) -> dict[str, Tensor]:
        """Weights (B, *shape) by slot; B conditions, or one condition with B seeds."""
        spec = self.target(spec)
        codes = self.codes(condition, spec, seeds)
        made: dict[str, Tensor] = {}
        for group in spec.groups:
            values = self.decoded(codes, group, spec, seeds)
            made.update(zip((spec.slots[i].name for i in group), values.unbind(1), strict=True))
        return made

    @torch.no_grad()
    def stream(
        self, condition: Condition, spec: TargetSpec | None = None, seeds: Sequence[int] = (0,), first: int = 0
    ) -> Iterator[tuple[Slot, Tensor]]:
        """The same weights slot by slot, a bounded number of values at a time, in any order of slots."""
        yield from streamed(self, condition, self.target(spec), seeds, first)

    def target(self, spec: TargetSpec | None = None) -> TargetSpec:
        """The target to generate for. InvalidInput where it is none of this model's, before anything is decoded."""
        if spec is None:
            if self.spec is None:
                raise InvalidInput("this generator makes any architecture, and none is given", "say which: --like")
            spec = self.spec
        elif self.spec is not None:
            spec = self.known(spec, self.spec)
        for part in self.children():
            check = getattr(part, "check", None)
            if callable(check):
                check(spec)
        return spec

    def known(self, spec: TargetSpec, own: TargetSpec) -> TargetSpec:
        """What was asked for with its tensors in the order that the parts know. InvalidInput if it is another.

        A generator of a zoo may make the running statistics too, which for a module are buffers.
        """
        if own.hash not in (spec.hash, with_statistics(spec).hash):
            raise InvalidInput(
                "this generator was made for another target", "leave --like out, or name the task it learned from"
            )
        return own


def streamed(
    model: Decodes, condition: Condition, spec: TargetSpec, seeds: Sequence[int], first: int = 0
) -> Iterator[tuple[Slot, Tensor]]:
    """Weights (B, *shape) slot by slot, a bounded number of values at a time, in any order of slots."""
    codes = model.codes(condition, spec, seeds, first)
    for group in chunks(spec):
        values = model.decoded(codes, group, spec, seeds)
        yield from ((spec.slots[i], values[:, place]) for place, i in enumerate(group))


def chunks(spec: TargetSpec) -> Iterator[tuple[int, ...]]:
    """The groups of a spec, cut so that none has more than CHUNK numbers, or is one tensor."""
    for group in spec.groups:
        size = max(1, prod(spec.slots[group[0]].shape))
        several = max(1, CHUNK // size)
        yield from (group[start : start + several] for start in range(0, len(group), several))


def built(registry: Parts, chosen: Mapping[str, Any], *where: object) -> nn.Module:
    """The part that `config.json` names, as a module."""
    part = registry.find(chosen["name"])
    made = part.make(options_of(registry, part.name, chosen.get("options", {})), *where)
    if not isinstance(made, nn.Module):
        raise TypeError(f"the {registry.kind} {part.name!r} is no torch.nn.Module")
    return made


def options_of(registry: Parts, name: str, given: Mapping[str, object]) -> Params:
    """The options of a part, checked."""
    part = registry.find(name)
    return validated(part.params, given, f"{registry.kind} {part.name}", f"see: paramsmith generators {part.name}")


def saved(registry: Parts, chosen: Chosen) -> dict[str, object]:
    """A part as `config.json` has it: without options that serve its making alone, which are excluded fields."""
    fields = registry.find(chosen.name).params.model_fields
    kept = {name: value for name, value in chosen.options.items() if name not in fields or not fields[name].exclude}
    return {"name": chosen.name, "options": kept}
