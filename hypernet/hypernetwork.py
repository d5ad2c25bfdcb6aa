"""A hypernetwork: encoder >> decoder >> parametrization, made of named parts; saved as its config and its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from paramsmith.parts import bases, decoders, encoders, scales

from .latents import PLAIN, Sampling, plainly
from .model import WeightModel, built, options_of, saved
from .protocols import Condition, Design, Site
from .targets.specfile import spec_from_json, spec_to_json
from .targets.target import TargetSpec


class Hypernetwork(WeightModel, ModelMixin):  # diffusers loads what has ModelMixin beside it in its file
    """`weights = base + scale(decoder(encoder(condition)))`, for one target or for any.

    The arguments are plain data, which `config.json` holds: of each part its name and options, the shapes of a
    condition, and the target where it is always the same.
    """

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
        self.encoder = built(encoders, encoder, site)
        self.decoder = built(decoders, decoder, site)
        self.base = built(bases, base, site)
        self.scale = built(scales, scale, site)

    @classmethod
    def of(cls, design: Design, site: Site, preset: Mapping[str, Any] | None = None) -> Hypernetwork:
        """Build a design for a site."""
        parts = {
            "encoder": saved(encoders, design.encoder),
            "decoder": saved(decoders, design.decoder),
            "base": saved(bases, design.base),
            "scale": saved(scales, design.scale),
        }
        shapes = {name: list(shape) for name, shape in site.condition.items()}
        target = spec_to_json(site.spec) if design.fixed and site.spec is not None else None
        made: Hypernetwork = cls(design.width, **parts, condition=shapes, target=target, preset=preset)
        begin = getattr(made.base, "begin", None)
        if callable(begin):  # a base may read what it begins with: now, and not when it is loaded again
            begin(options_of(bases, design.base.name, design.base.options))
        return made

    def check_sampling(self, how: Sampling) -> None:
        """InvalidInput for anything but plain: nothing is sampled."""
        plainly("a hypernetwork", how)

    def codes(
        self,
        condition: Condition,
        spec: TargetSpec,
        seeds: Sequence[int],
        first: int = 0,
        how: Sampling = PLAIN,
    ) -> Tensor:
        """(B, T, d), or (B, 1, d): those of the encoder, which no seed changes."""
        self.check_sampling(how)
        codes: Tensor = self.encoder(condition, spec)
        return codes

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """The weights of one group of slots, (B, S, *shape), from the codes of all: a piece of `forward`."""
        slots = [spec.slots[i] for i in group]
        own = codes[:, list(group)] if codes.shape[1] > 1 else codes.expand(-1, len(group), -1)
        scaled = self.scale(self.decoder(own, slots), slots)  # (B, S, *shape); what was raw is let go of
        weights: Tensor = self.base(slots, seeds) + scaled
        return weights
