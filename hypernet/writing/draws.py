"""The samples of one run: a sampler draws several side by side, which are kept until others are wanted."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from paramsmith.hypernet.latents import PLAIN, Sampling
from paramsmith.hypernet.model import WeightModel
from paramsmith.hypernet.protocols import Condition
from paramsmith.hypernet.sampler import Sampler
from paramsmith.hypernet.targets.target import TargetSpec

from .samples import sample_seed

KEPT = 1 << 24  # numbers of tokens that stay in memory: 64 MB; where there are more, latents alone stay


class Draws:
    """Samples of one seed, drawn as `how` says: in the place of a model, with the same bytes.

    Sample i is asked by condition i, or by the only one there is. A sampler draws a block of samples at a time: that of
    the last sample is remembered, as long as neither the model nor the condition is changed meanwhile. Several threads
    may ask.
    """

    def __init__(self, model: WeightModel, condition: Condition, seed: int, how: Sampling = PLAIN) -> None:
        self.model, self.condition, self.seed, self.how = model, condition, seed, how
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._latent, self._tokens = torch.empty(0), torch.empty(0)  # of the block that the key tells; or no tokens

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = self.model.device
        return found

    @torch.no_grad()
    def codes(self, condition: Condition, spec: TargetSpec, seeds: Sequence[int], first: int = 0) -> Tensor:
        """As `WeightModel.codes`, for samples from number `first` on; ValueError for other seeds than theirs.

        A sampler is asked by what this object was made with, of which `condition` is the part for these samples.
        """
        numbers = range(first, first + len(seeds))
        if list(seeds) != [sample_seed(self.seed, i) for i in numbers]:
            raise ValueError(f"samples {first} and on of seed {self.seed} have other seeds")
        if not isinstance(self.model, Sampler):
            return self.model.codes(condition, spec, seeds, first, self.how)
        several = self.model.together(spec)
        made = []
        for block in range(first // several, -(-numbers.stop // several)):
            start = block * several
            tokens = self._block(self.model, spec, start, several)
            made.append(tokens[max(first - start, 0) : numbers.stop - start])
        return torch.cat(made)  # in memory of its own

    def decoded(self, codes: Tensor, group: Sequence[int], spec: TargetSpec, seeds: Sequence[int]) -> Tensor:
        """As `WeightModel.decoded`."""
        return self.model.decoded(codes, group, spec, seeds)

    def held(self, spec: TargetSpec) -> int:
        """About how many bytes a block takes, as it is decoded and when it is kept."""
        if not isinstance(self.model, Sampler):
            return 0
        layout = self.model.layout(spec)
        numbers: int = self.model.together(spec) * len(layout) * layout.width
        return 4 * (2 * numbers + min(numbers, KEPT))

    def _block(self, model: Sampler, spec: TargetSpec, start: int, several: int) -> Tensor:
        """The tokens (several, N, T) of the samples from `start` on."""
        with self._lock:
            key = (spec.hash, start)
            if key != self._key:
                seeds = [sample_seed(self.seed, i) for i in range(start, start + several)]
                self._latent = model.drawn(self._asked(model, spec, start, several), spec, seeds, self.how)
                self._key, self._tokens = key, torch.empty(0)
            if len(self._tokens):
                return self._tokens
            tokens: Tensor = model.codec.decode(self._latent, model.layout(spec))
            if tokens.numel() <= KEPT:
                self._tokens = tokens
            return tokens

    def _asked(self, model: Sampler, spec: TargetSpec, start: int, several: int) -> Tensor:
        """What these samples are asked by; after the last condition comes that one again."""
        given = max((len(tensor) for tensor in self.condition.values()), default=1)
        held = {name: tensor.to(model.device) for name, tensor in self.condition.items()}
        return model.apart(held, [min(i, given - 1) for i in range(start, start + several)], spec)
