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

from .latents import PLAIN, Places, Sampling, plainly
from .model import WeightModel, built, saved
from .protocols import Condition, SamplerDesign, Site
from .seeding import normals
from .targets.specfile import spec_from_json, spec_to_json
from .targets.target import TargetSpec
from .tokens.layout import Layout
from .tokens.tokenizer import Tokenizer
from .writing.conditions import one_of

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

        Codes are one a class, where the encoder says `by_class`, one a token with `by_token`, else one a slot. A
        position that is of none, or of several, gets the mean of all.
        """
        codes: Tensor = self.encoder(condition, spec)  # (B, S, d)
        if codes.shape[1] == 1:
            return codes
        places = self.places(spec)
        if getattr(self.encoder, "by_token", False):
            return codes if codes.shape[1] == len(places) else codes.mean(1, keepdim=True)
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

    def check_sampling(self, how: Sampling) -> None:
        """InvalidInput for steps or guidance that the prior does not have, or where nothing is asked for."""
        check = getattr(self.prior, "check_sampling", None)
        if not callable(check):
            return plainly(f"the prior {self.config['prior']['name']!r}", how)
        if how.guidance != 1 and not self.config["condition"]:
            raise InvalidInput("this generator is asked for nothing that could guide it", "leave --guidance out")
        check(how)
        return None

    def codes(
        self,
        condition: Condition,
        spec: TargetSpec,
        seeds: Sequence[int],
        first: int = 0,
        how: Sampling = PLAIN,
    ) -> Tensor:
        """Tokens (B, N, T).

        A sample is drawn in a batch of one size, at a place in it that its number gives, whatever else is drawn, and
        what is asked for is encoded by itself: sums may round by any of these.
        """
        given = max((len(tensor) for tensor in condition.values()), default=1)
        whole = self.asked(condition, spec) if given == 1 else None
        count, several = max(given, len(seeds)), self.together(spec)
        seeds = list(seeds) * (count if len(seeds) == 1 else 1)
        made = []
        for start in range(first - first % several, first + count, several):
            rows = [min(max(i - first, 0), count - 1) for i in range(start, start + several)]
            asked = self.apart(condition, rows, spec) if whole is None else whole.expand(several, -1, -1).contiguous()
            latent = self.drawn(asked, spec, [seeds[i] for i in rows], how)
            tokens: Tensor = self.codec.decode(latent, self.layout(spec))
            made.append(tokens[max(first - start, 0) : first + count - start])
        return torch.cat(made)

    def apart(self, condition: Condition, rows: Sequence[int], spec: TargetSpec) -> Tensor:
        """What is asked for in these rows, (len(rows), L or 1, d), each encoded by itself."""
        codes = {i: self.asked(one_of(condition, i), spec) for i in dict.fromkeys(rows)}
        return torch.cat([codes[i] for i in rows])

    def drawn(self, asked: Tensor, spec: TargetSpec, seeds: Sequence[int], how: Sampling = PLAIN) -> Tensor:
        """Latents (B, L, D) for codes (B, L or 1, d), a seed each. InvalidInput where the prior cannot draw so."""
        self.check_sampling(how)
        latent: Tensor = self.prior.sample(asked, self.places(spec), partial(_noise, seeds, self.device), how)
        return latent

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """The weights of one group of slots, (B, S, *shape), from the tokens of all."""
        slots = [spec.slots[i] for i in group]
        made = self.tokenizer.tensors(codes, spec, [slot.name for slot in slots])
        return torch.stack([made[slot.name] for slot in slots], 1)


def _noise(seeds: Sequence[int], device: torch.device, key: str, shape: Sequence[int]) -> Tensor:
    """(B, *shape) of N(0, 1), each row by its seed."""
    return normals(seeds, key, shape).to(device)
