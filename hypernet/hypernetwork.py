"""A hypernetwork: encoder >> decoder >> parametrization, made of named parts; saved as its config and its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.params import Params, validated
from paramsmith.parts import Parts, bases, decoders, encoders, scales

from .protocols import Chosen, Condition, Design, Site
from .targets.specfile import spec_from_json, spec_to_json
from .targets.target import Slot, TargetSpec

CHUNK = 1 << 22  # numbers decoded at once when a target is streamed; fixed, so that the bytes are the same everywhere


class Hypernetwork(ModelMixin, ConfigMixin):
    """`weights = base + scale(decoder(encoder(condition)))`, for one target or for any.

    The arguments are plain data, which `config.json` holds: of each part its name and options, the shapes of a
    condition, and the target where it is always the same.
    """

    config_name = "config.json"  # type: ignore[assignment]  # the base declares it as None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        base: Mapping[str, Any],
        scale: Mapping[str, Any],
        condition: Mapping[str, Sequence[int]],
        target: Mapping[str, Any] | None = None,
        preset: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = None if target is None else spec_from_json(target)
        site = Site(width, self.spec, {name: tuple(shape) for name, shape in condition.items()})
        self.encoder = _built(encoders, encoder, site)
        self.decoder = _built(decoders, decoder, site)
        self.base = _built(bases, base, site)
        self.scale = _built(scales, scale, site)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as in torch
        """A part, before the entry of the same name in the config, which diffusers would give."""
        modules: Mapping[str, nn.Module] = self.__dict__.get("_modules", {})
        return modules[name] if name in modules else super().__getattr__(name)

    @classmethod
    def of(cls, design: Design, site: Site, preset: Mapping[str, Any] | None = None) -> Hypernetwork:
        """Build a design for a site."""
        parts = {
            "encoder": _saved(encoders, design.encoder),
            "decoder": _saved(decoders, design.decoder),
            "base": _saved(bases, design.base),
            "scale": _saved(scales, design.scale),
        }
        shapes = {name: list(shape) for name, shape in site.condition.items()}
        target = spec_to_json(site.spec) if design.fixed and site.spec is not None else None
        made: Hypernetwork = cls(design.width, **parts, condition=shapes, target=target, preset=preset)
        begin = getattr(made.base, "begin", None)
        if callable(begin):  # a base may read what it begins with: now, and not when it is loaded again
            begin(_options(bases, design.base.name, design.base.options))
        return made

    def forward(
        self, condition: Condition, spec: TargetSpec | None = None, seeds: Sequence[int] = (0,)
    ) -> dict[str, Tensor]:
        """Weights (B, *shape) by slot; B conditions, or one condition with B seeds."""
        spec = self.target(spec)
        codes = self.encoder(condition, spec)  # (B, T or 1, d)
        made: dict[str, Tensor] = {}
        for group in spec.groups:
            values = self.decoded(codes, group, spec, seeds)
            made.update(zip((spec.slots[i].name for i in group), values.unbind(1), strict=True))
        return made

    @torch.no_grad()
    def stream(
        self, condition: Condition, spec: TargetSpec | None = None, seeds: Sequence[int] = (0,)
    ) -> Iterator[tuple[Slot, Tensor]]:
        """The same weights slot by slot, a bounded number of values at a time, in any order of slots."""
        spec = self.target(spec)
        codes = self.encoder(condition, spec)
        for group in chunks(spec):
            values = self.decoded(codes, group, spec, seeds)
            yield from ((spec.slots[i], values[:, place]) for place, i in enumerate(group))

    def target(self, spec: TargetSpec | None = None) -> TargetSpec:
        """The target to generate for. InvalidInput where it is none of this generator's, before anything is decoded."""
        if spec is None:
            if self.spec is None:
                raise InvalidInput("this generator makes any architecture, and none is given", "say which: --like")
            spec = self.spec
        elif self.spec is not None:
            if spec.hash != self.spec.hash:
                raise InvalidInput("this generator was made for another target", "leave --like out")
            spec = self.spec  # the same tensors, in the order that the parts know
        for part in (self.encoder, self.decoder, self.base, self.scale):
            check = getattr(part, "check", None)
            if callable(check):
                check(spec)
        return spec

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """The weights of one group of slots, (B, S, *shape), from the codes of all: a piece of `forward`."""
        slots = [spec.slots[i] for i in group]
        own = codes[:, list(group)] if codes.shape[1] > 1 else codes.expand(-1, len(group), -1)
        scaled = self.scale(self.decoder(own, slots), slots)  # (B, S, *shape); what was raw is let go of
        weights: Tensor = self.base(slots, seeds) + scaled
        return weights


def chunks(spec: TargetSpec) -> Iterator[tuple[int, ...]]:
    """The groups of a spec, cut so that none has more than CHUNK numbers, or is one tensor."""
    for group in spec.groups:
        size = max(1, prod(spec.slots[group[0]].shape))
        several = max(1, CHUNK // size)
        yield from (group[start : start + several] for start in range(0, len(group), several))


def _built(registry: Parts, chosen: Mapping[str, Any], site: Site) -> nn.Module:
    part = registry.find(chosen["name"])
    made = part.make(_options(registry, part.name, chosen.get("options", {})), site)
    if not isinstance(made, nn.Module):
        raise TypeError(f"the {registry.kind} {part.name!r} is no torch.nn.Module")
    return made


def _options(registry: Parts, name: str, given: Mapping[str, object]) -> Params:
    part = registry.find(name)
    return validated(part.params, given, f"{registry.kind} {part.name}", f"see: paramsmith generators {part.name}")


def _saved(registry: Parts, chosen: Chosen) -> dict[str, object]:
    """A part as `config.json` has it: without options that serve its making alone, which are excluded fields."""
    fields = registry.find(chosen.name).params.model_fields
    kept = {name: value for name, value in chosen.options.items() if name not in fields or not fields[name].exclude}
    return {"name": chosen.name, "options": kept}
