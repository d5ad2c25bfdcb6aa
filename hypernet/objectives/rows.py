"""Regression onto embedding rows: the direction by contrast within a batch, the values by their relative error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.vocabulary.asking import judged, predicted
from paramsmith.hypernet.vocabulary.data import Vocabulary
from paramsmith.params import Params
from paramsmith.parts import objectives

_POOL = 16  # batches whose sets are sorted by length together


class Rows(Params):
    """Options of the objective `rows`."""

    contrast: float = Field(
        0.1, ge=0, le=1, description="share of the contrast in the loss; the rest is relative error"
    )
    temperature: float = Field(0.25, gt=0, description="of the contrast: 0.5 for one language, 0.25 for many")
    batch: int = Field(256, ge=2, description="tokens a step")
    augment: float = Field(0.5, ge=0, le=1, description="share of the tokens of which only some words are shown")
    keep: float = Field(0.5, gt=0, le=1, description="the smallest share of the words that are then shown")


@objectives("rows", Rows, paper="arXiv:2504.21018")
class RowsObjective:
    """The loss of HYPEROFA (see `rows_loss`) on tokens of a `Vocabulary`, in batches of about equal lengths.

    The words of a set are shuffled every time, as a set has no order; of some only a part is shown. Making it sets what
    the generator keeps of its source: the primitives, and mean and spread of the word vectors.
    """

    def __init__(self, options: Rows, hypernetwork: Hypernetwork, source: object) -> None:
        if not isinstance(source, Vocabulary):
            raise InvalidInput("the objective 'rows' learns from a vocabulary", "give a Vocabulary to fit")
        self.options, self.hypernetwork, self.source = options, hypernetwork, source
        standardise = getattr(hypernetwork.encoder, "standardise", None)
        set_factors = getattr(hypernetwork.decoder, "set_factors", None)
        if not callable(standardise) or not callable(set_factors):
            raise InvalidInput("the objective 'rows' trains the encoder 'words' and the decoder 'factors'", "hyperofa")
        self.pairs = source.shares["train"]  # (train)
        standardise(source.vectors)
        set_factors(source.primitives, float(source.targets[self.pairs].square().mean().sqrt()))

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """All parameters, every step."""
        return {"hypernetwork": list(self.hypernetwork.parameters())}

    def turn(self, step: int) -> str:
        """There is one turn."""
        return "hypernetwork"

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The loss of a batch drawn by `rng`."""
        pairs = grouped(self.source.bags.sizes[self.pairs], self.options.batch, rng)
        pairs = self.pairs[pairs]  # (B)
        shown = shown_words(self.source.bags.padded(pairs), self.options.augment, self.options.keep, rng)
        members, mask = shown  # (B, n)
        device = next(self.hypernetwork.parameters()).device
        condition = {
            "set": (self.source.vectors[members] * mask[..., None]).to(device),
            "mask": mask.to(device),
        }
        made = predicted(self.hypernetwork, condition)  # (B, rank)
        wanted = self.source.targets[pairs].to(device)
        return rows_loss(made, wanted, self.options.contrast, self.options.temperature)

    def result(self) -> dict[str, object]:
        """How near it comes to pairs it has not seen, beside the baselines: mean cosines of rows of the same rank."""
        source = self.source
        apart = torch.cat([source.shares["validation"], source.shares["test"]])
        bags, truth = source.bags.select(apart), source.targets[apart] @ source.primitives
        found = judged(source.only(self.pairs), bags, truth, self.hypernetwork)
        cosines = {name: round(near.cosine, 4) for name, near in found.items() if name != "ceiling"}
        return {"unseen tokens": len(apart), "cosine": cosines}


def rows_loss(made: Tensor, wanted: Tensor, contrast: float = 0.1, temperature: float = 0.25) -> Tensor:
    """contrast * CE(cos(made_i, wanted_j) / T against i) + (1 - contrast) * mean|made - wanted| / mean|wanted|.

    made and wanted (B, rank) -> a scalar.

    >>> rows_loss(torch.eye(2), torch.eye(2), temperature=1.0)
    tensor(0.0313)

    Paper: HYPEROFA, arXiv:2504.21018.
    """
    cosines = functional.normalize(made, dim=1) @ functional.normalize(wanted, dim=1).mT  # (B, B)
    told = functional.cross_entropy(cosines / temperature, torch.arange(len(made), device=made.device))
    relative = (made - wanted).abs().mean() / wanted.abs().mean()
    return contrast * told + (1 - contrast) * relative


def grouped(sizes: Tensor, batch: int, rng: torch.Generator) -> Tensor:
    """Numbers (B) of a batch of different sets of about equal sizes; each is as likely as any other.

    Of sixteen batches drawn at random it takes one, after sorting by size.
    """
    order = torch.randperm(len(sizes), generator=rng)[: batch * min(_POOL, max(1, len(sizes) // batch))]
    order = order[sizes[order].argsort(stable=True)]
    first = batch * int(torch.randint(math.ceil(len(order) / batch), (), generator=rng))
    return order[first : first + batch]


def shown_words(
    sets: tuple[Tensor, Tensor], augment: float, keep: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The same sets in random order, some of them, with probability `augment`, cut to a share of at least `keep`.

    members and mask, (B, n) both -> the same.
    """
    members, mask = sets
    keys = torch.rand(mask.shape, generator=rng).masked_fill(~mask, 2.0)  # what is not there stays behind
    members = members.gather(1, keys.argsort(1))
    sizes = mask.sum(1)  # (B)
    cut = torch.rand(len(mask), generator=rng) < augment
    least = torch.ceil(keep * sizes).long().clamp_min(1).minimum(sizes)
    some = least + (torch.rand(len(mask), generator=rng) * (sizes - least + 1)).long()
    left = torch.where(cut, some.minimum(sizes), sizes)
    mask = torch.arange(mask.shape[1]) < left[:, None]
    return members.masked_fill(~mask, 0), mask
