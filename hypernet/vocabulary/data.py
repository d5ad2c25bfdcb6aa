"""What an embedding generator learns from: tokens with the words they occur in, and the coordinates of their rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.memory import as_bytes

from .factorise import Factors
from .words import Bags

Share = Literal["train", "validation", "test"]
SHARES = {"validation": 0.025, "test": 0.005}
ROW = "row"


@dataclass(frozen=True)
class Vocabulary:
    """Pairs of a set of words and the coordinates of an embedding row, for `fit`, and for the baselines.

    `vectors` (words, width) are those of all words, `bags` the set of each pair, `targets` (pairs, rank) its
    coordinates, `primitives` (rank, columns) what makes a row of them: row = coordinates @ primitives. The pairs are
    split 97 / 2.5 / 0.5 % by `seed`.
    """

    vectors: Tensor
    bags: Bags
    targets: Tensor
    primitives: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        """InvalidInput for pairs that nothing can be learned from."""
        if len(self.bags) != len(self.targets) or self.targets.shape[1] != len(self.primitives):
            raise ValueError("bags, targets and primitives do not belong together")
        if len(self.bags) < 2:
            fact = f"{len(self.bags):,} tokens of the source have words, which is too few to learn from"
            raise InvalidInput(fact, "are the word vectors those of the source's languages?")
        if int(self.bags.sizes.min()) < 1:
            raise InvalidInput("a token has no words", "leave out what the word vectors do not cover")

    @classmethod
    def of(cls, vectors: Tensor, bags: Bags, factors: Factors, seed: int = 0) -> Vocabulary:
        """The pairs of a source: those of its tokens, one a row of `factors`, that have words."""
        known = torch.nonzero(bags.sizes)[:, 0]
        return cls(vectors, bags.select(known), factors.coordinates[known], factors.primitives, seed)

    def __len__(self) -> int:
        return len(self.bags)

    def only(self, pairs: Tensor) -> Vocabulary:
        """The vocabulary of these pairs alone."""
        return replace(self, bags=self.bags.select(pairs), targets=self.targets[pairs])

    @cached_property
    def shares(self) -> dict[Share, Tensor]:
        """Numbers of the pairs of each share; every share has one where there are three pairs."""
        order = np.random.Generator(np.random.Philox(key=self.seed)).permutation(len(self))
        found: dict[Share, Tensor] = {}
        end = len(self)
        for share, part in SHARES.items():
            count = min(max(1, round(part * len(self))), len(self) // 3)
            found["validation" if share == "validation" else "test"] = torch.from_numpy(order[end - count : end].copy())
            end -= count
        found["train"] = torch.from_numpy(order[:end].copy())
        return found

    def condition(self, pairs: Tensor) -> dict[str, Tensor]:
        """What a hypernetwork is asked: `set` (B, n, width) and `mask` (B, n)."""
        return condition_of(self.bags, self.vectors, pairs)

    @property
    def site(self) -> Site:
        """Where a hypernetwork for this vocabulary is built."""
        return site_of(self.vectors.shape[1], self.primitives.shape[1])

    @cached_property
    def digest(self) -> str:
        """Tells this data from other data."""
        held = (self.vectors, self.bags.starts, self.bags.members, self.targets, self.primitives)
        found = hashlib.sha256(json.dumps([self.seed, *(list(tensor.shape) for tensor in held)]).encode())
        for tensor in held:
            found.update(as_bytes(tensor.contiguous()))
        return found.hexdigest()


def condition_of(bags: Bags, vectors: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """The vectors of the words of these bags, (B, n, width) with zeros behind, and which are there, (B, n)."""
    members, mask = bags.padded(chosen)
    return {"set": vectors[members] * mask[..., None], "mask": mask}


def site_of(width: int, columns: int) -> Site:
    """The site of a generator of embedding rows from words of that width: a target of one slot, the row.

    A set may have any number of words.
    """
    slot = Slot(ROW, (columns,), "F32", "embedding", fan_in=1)
    return Site(0, TargetSpec((slot,)), {"set": (0, width), "mask": (0,)})
