"""Candidates: the samples of a generator one by one, whole or some of their tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor

from paramsmith.device import one_thread_an_operation
from paramsmith.errors import InvalidInput
from paramsmith.hypernet.latents import PLAIN, Places, Sampling
from paramsmith.hypernet.model import Decodes, WeightModel, chunks
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.seeding import normal, uniform
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.hypernet.writing.draws import Draws
from paramsmith.hypernet.writing.samples import sample_seed

from .roles import Weights


class Draw(Protocol):
    """What candidates come from."""

    def __call__(self, number: int, names: Collection[str] | None = None) -> Weights:
        """Candidate `number`, whatever else is drawn: all of its tensors, or those that are named."""
        ...


def draws(model: WeightModel, condition: Condition, spec: TargetSpec, seed: int = 0, how: Sampling = PLAIN) -> Draw:
    """Candidate i is sample i of this seed, with the values that `Generator.sample` gives it. `condition`: B = 1.

    A sampler's are drawn several at a time, so that the model is not to change meanwhile.
    """
    model.check_sampling(how)
    samples = Draws(model, condition, seed, how)

    @torch.no_grad()
    def draw(number: int, names: Collection[str] | None = None) -> Weights:
        seeds = [sample_seed(seed, number)]
        with one_thread_an_operation():
            return _decoded(samples, samples.codes(condition, spec, seeds, number), spec, seeds, names)

    return draw


@torch.no_grad()
def around(sampler: Sampler, anchors: list[Weights], spec: TargetSpec, seed: int, width: float | None = None) -> Draw:
    """Candidates of a kernel density estimate on the latents of m anchors: at each position one of them, and noise.

    z_l = z_m(l),l + h std_l eps,  eps ~ N(0, 1); h is m^(-1/5) unless told, std over the anchors. InvalidInput for
    fewer than two anchors.

    Paper: Towards Scalable and Versatile Weight Space Learning (SANE), arXiv:2406.09997.
    """
    if len(anchors) < 2:
        raise InvalidInput(f"{len(anchors)} networks are no density", "keep at least 2")
    stacked = {name: torch.stack([anchor[name] for anchor in anchors]) for name in anchors[0]}
    held = sampler.encoded(stacked, spec)  # (m, L, D)
    std = held.double().std(0, correction=0).to(held)  # (L, D)
    factor = len(anchors) ** -0.2 if width is None else width
    places: Places = sampler.places(spec)

    @torch.no_grad()
    def draw(number: int, names: Collection[str] | None = None) -> Weights:
        own = sample_seed(seed, number)
        which = uniform(own, "anchor", (held.shape[1],)).add(1).mul(len(held) / 2).long().clamp(0, len(held) - 1)
        eps = normal(own, "around", held.shape[1:]).to(held)
        rows = torch.arange(held.shape[1], device=held.device)
        latent = held[which.to(held.device), rows] + factor * std * eps
        latent = torch.where(places.mask, latent, 0.0)[None]
        with one_thread_an_operation():
            tokens: Tensor = sampler.codec.decode(latent, sampler.layout(spec))
            return _decoded(sampler, tokens, spec, [own], names)

    return draw


def _decoded(
    model: Decodes, codes: Tensor, spec: TargetSpec, seeds: list[int], names: Collection[str] | None
) -> dict[str, Tensor]:
    """In the chunks that a file is written in, as how sums round may depend on what is decoded together."""
    made: dict[str, Tensor] = {}
    for group in chunks(spec):
        own = [(place, spec.slots[i].name) for place, i in enumerate(group)]
        wanted = [(place, name) for place, name in own if names is None or name in names]
        if wanted:
            values = model.decoded(codes, group, spec, seeds)  # (1, S, *shape)
            made.update((name, values[0, place].clone()) for place, name in wanted)
    return {slot.name: made[slot.name] for slot in spec.slots if slot.name in made}
