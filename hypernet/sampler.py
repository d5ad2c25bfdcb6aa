"""A sampler: a prior draws latents for a condition, a codec makes tokens of them, and these are weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.parts import codecs, encoders, priors

from .latents import Places, Sampling
from .model import WeightModel, built, saved
from .protocols import Condition, SamplerDesign, Site
from .seeding import normal
from .targets.specfile import spec_from_json, spec_to_json
from .targets.target import TargetSpec
from .tokens.layout import Layout
from .tokens.tokenizer import Tokenizer

_TOGETHER = 1 << 18  # numbers of latents drawn at once; fixed, as is where each sample stands among them
_MOST = 16  # samples drawn at once


class Sampler(WeightModel, ModelMixin):  # diffusers loads what has ModelMixin beside it in its file
    """`weights = tokenizer⁻¹(codec⁻¹(prior(encoder(condition), noise)))`, for one target, whatever its classes.

    The arguments are plain data, which `config.json` holds: of each part its name and options, the shapes of a
    condition, and the target.
    """

    codec: Any  # a module that is a `Codec`
    prior: Any  # a module that is a `Prior`

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int,
        tokens: Mapping[str, Any],
        encoder: Mapping[str, Any],
        codec: Mapping[str, Any],
        prior: Mapping[str, Any],
        condition: Mapping[str, Sequence[int]],
        target: Mapping[str, Any],
        preset: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = spec_from_json(target)
        self.tokenizer = Tokenizer.of(tokens, self.spec)
        shapes = {name: tuple(shape) for name, shape in condition.items()}
        site = Site(width, self.spec, shapes, layout=self.tokenizer.layout(self.spec))
        self.encoder = built(encoders, encoder, site)
        self.codec = built(codecs, codec, site)
        places = self.codec.places(site.layout)
        length, numbers = places.mask.shape
        features = places.features.shape[1]
        self.prior = built(priors, prior, Site(width, self.spec, shapes, site.layout, (length, numbers), features))
        self.sampling = Sampling()

    @classmethod
    def of(cls, design: SamplerDesign, site: Site, preset: Mapping[str, Any] | None = None) -> Sampler:
        """Build a design for a site. InvalidInput for a site without a target."""
        if site.spec is None:
            raise InvalidInput("a sampler makes one architecture, and there is none or several", "keep a zoo for each")
        parts = {
            "encoder": saved(encoders, design.encoder),
            "codec": saved(codecs, design.codec),
            "prior": saved(priors, design.prior),
        }
        asked = site.condition if design.condition is None else design.condition
        shapes = {name: list(shape) for name, shape in asked.items()}
        target = spec_to_json(site.spec)
        made: Sampler = cls(
            design.width, tokens=dict(design.tokens), **parts, condition=shapes, target=target, preset=preset
        )
        return made

    def known(self, spec: TargetSpec, own: TargetSpec) -> TargetSpec:
        """The same target, or the same with another number of classes."""
        if spec.classes is not None and own.classes is not None:
            own = own if spec.classes == own.classes else own.with_classes(spec.classes)
        return super().known(spec, own)

    def layout(self, spec: TargetSpec) -> Layout:
        """How a target is cut into tokens."""
        return self.tokenizer.layout(spec)

    def places(self, spec: TargetSpec) -> Places:
        """Where the positions of a latent stand."""
        found: Places = self.codec.places(self.layout(spec)).to(self.device)
        return found

    def asked(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, L, d): the encoder's codes, each where it belongs; or (B, 1, d), one for all positions.

        Codes are one a class, where the encoder says `by_class`, else one a slot. A position that is of none, or of
        several, gets the mean of all.
        """
        codes: Tensor = self.encoder(condition, spec)  # (B, S, d)
        if codes.shape[1] == 1:
            return codes
        places = self.places(spec)
        chosen = places.classes if getattr(self.encoder, "by_class", False) else places.slots
        if int(chosen.max()) >= codes.shape[1]:
            fact = f"the condition is for {codes.shape[1]} classes, and the target has {int(chosen.max()) + 1}"
            raise InvalidInput(fact, "give one a class, and the number of classes: --classes")
        return torch.cat([codes, codes.mean(1, keepdim=True)], 1)[:, chosen]  # -1 is the last

    def encoded(self, tensors: Mapping[str, Tensor], spec: TargetSpec) -> Tensor:
        """Latents (B, L, D) of weights (B, *shape)."""
        found: Tensor = self.codec.encode(self.tokenizer.tokens(tensors, spec), self.layout(spec))
        return found

    def restored(self, latent: Tensor, spec: TargetSpec) -> dict[str, Tensor]:
        """Weights (B, *shape) of latents (B, L, D)."""
        return self.tokenizer.tensors(self.codec.decode(latent, self.layout(spec)), spec)

    def together(self, spec: TargetSpec) -> int:
        """How many samples are drawn at once: a fixed number, as sums may round by how many there are."""
        most = _TOGETHER // max(1, prod(self.places(spec).mask.shape))
        return max(1, min(_MOST, 1 << most.bit_length() >> 1))

    def codes(self, condition: Condition, spec: TargetSpec, seeds: Sequence[int], first: int = 0) -> Tensor:
        """Tokens (B, N, T).

        A sample is drawn in a batch of one size, at a place in it that its number gives, whatever else is drawn: sums
        may round by either.
        """
        asked, places = self.asked(condition, spec), self.places(spec)
        count, several = max(len(asked), len(seeds)), self.together(spec)
        asked, seeds = asked.expand(count, -1, -1), list(seeds) * (count if len(seeds) == 1 else 1)
        made = []
        for start in range(first - first % several, first + count, several):
            rows = [min(max(i - first, 0), count - 1) for i in range(start, start + several)]
            drawn = self._drawn(asked[rows], places, [seeds[i] for i in rows], spec)
            made.append(drawn[max(first - start, 0) : first + count - start])
        return torch.cat(made)

    def _drawn(self, asked: Tensor, places: Places, seeds: Sequence[int], spec: TargetSpec) -> Tensor:
        noise = partial(_noise, seeds, self.device)
        latent = self.prior.sample(asked, places, noise, self.sampling)
        tokens: Tensor = self.codec.decode(latent, self.layout(spec))
        return tokens

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """The weights of one group of slots, (B, S, *shape), from the tokens of all."""
        slots = [spec.slots[i] for i in group]
        made = self.tokenizer.tensors(codes, spec, [slot.name for slot in slots])
        return torch.stack([made[slot.name] for slot in slots], 1)


def _noise(seeds: Sequence[int], device: torch.device, key: str, shape: Sequence[int]) -> Tensor:
    """(B, *shape) of N(0, 1), each row by its seed."""
    return torch.stack([normal(seed, key, shape) for seed in seeds]).to(device)
