"""Weights that one begins with, as a code for each token of what they are to become."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.vector import Widths
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.tokens.layout import FEATURES, Layout
from paramsmith.params import Params
from paramsmith.parts import encoders

_LEAST = 1e-8  # of a token's root mean square


class Start(Params):
    """Options of the encoder `start`."""

    hidden: Widths = Field((256,), description="widths of the layers over each token, before the code's own")


@encoders("start", Start)
class StartEncoder(nn.Module):
    """Codes (B, N, width), one a token, of `start` (B, numbers): a network of the target, see `flattened`.

    It is cut into tokens t as the target is; of each, t / rms(t), log rms(t) and the features of its place go through
    layers with GELU. InvalidInput for a site without such a condition or without a layout, for a target whose tokens
    are no numbers of its own (the view svd), and for other numbers of numbers, or ones that are not finite.
    """

    by_token = True

    def __init__(self, options: Start, site: Site) -> None:
        super().__init__()
        shape = site.condition.get("start", ())
        if len(shape) != 1:
            fact = "the encoder 'start' wants a condition `start` of (numbers,): a network of the target"
            raise InvalidInput(fact, "let each network of the zoo say what it began with")
        if site.layout is None or site.layout.spec != site.spec:
            fact = "the encoder 'start' wants tokens that are cut from the target as it is"
            raise InvalidInput(fact, "use it in a sampler, without the view svd")
        self.layout: Layout = site.layout
        _check_count(shape[0], self.layout.spec, fixed=bool(shape[0]) and self.layout.spec.classes is None)
        widths = [self.layout.width - self.layout.own + 1 + FEATURES, *options.hidden, site.width]
        layers = [part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.GELU())][:-1]
        self.body = nn.Sequential(*layers)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, N, width)."""
        start = self._checked(condition, spec)
        own = self.layout.spec
        layout = self.layout if spec == own or spec.classes is None else self.layout.with_classes(spec.classes)
        tokens = layout.tokens(split(start, spec))[..., : layout.width - layout.own]  # (B, N, T)
        size = tokens.square().mean(2, keepdim=True).sqrt().clamp_min(_LEAST)
        features = layout.places.features.to(tokens).expand(len(tokens), -1, -1)
        code: Tensor = self.body(torch.cat([tokens / size, size.log(), features], 2))
        return code

    def _checked(self, condition: Condition, spec: TargetSpec) -> Tensor:
        start = condition.get("start")
        if start is None or start.dim() != 2:
            told = "nothing" if start is None else "x".join(map(str, start.shape))
            raise InvalidInput(f"a condition is `start`, (B, numbers), and there is {told}", "give a network for each")
        _check_count(start.shape[1], spec, fixed=True)
        if not bool(torch.isfinite(start).all()):
            raise InvalidInput("the condition `start` holds a number that is not finite", "give finite weights")
        return start.float()


def flattened(tensors: Mapping[str, Tensor], spec: TargetSpec) -> Tensor:
    """What a condition `start` is of a network: its tensors in the order of the spec, (numbers,) fp32."""
    return torch.cat([tensors[slot.name].detach().float().flatten() for slot in spec.slots])


def split(start: Tensor, spec: TargetSpec) -> dict[str, Tensor]:
    """The inverse, for (B, numbers): (B, *shape) by slot."""
    parts = start.tensor_split(torch.tensor([prod(s.shape) for s in spec.slots]).cumsum(0)[:-1].tolist(), 1)
    return {slot.name: part.reshape(-1, *slot.shape) for slot, part in zip(spec.slots, parts, strict=True)}


def _check_count(found: int, spec: TargetSpec, *, fixed: bool) -> None:
    numbers = sum(prod(slot.shape) for slot in spec.slots)
    if fixed and found != numbers:
        fact = f"the condition `start` has {found:,} numbers, and the target {numbers:,}"
        raise InvalidInput(fact, "give all tensors of a network of the target, in its order")
