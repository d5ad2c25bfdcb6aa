"""Regression onto the checkpoints of a zoo, each from what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.training.zoo import Member, Zoo
from paramsmith.params import Params
from paramsmith.parts import objectives

_HELD = 1 << 28  # numbers of a zoo that are kept in memory, 1 GB; others are read again at every step


class Regression(Params):
    """What one step is."""

    meta_batch: int = Field(8, ge=1, le=65_536, description="checkpoints a step")
    normalise: Literal["tensor", "none"] = Field("tensor", description="divide errors by the variance over the zoo")


@objectives("regression", Regression)
class RegressionObjective:
    """The mean over a meta-batch, and over the tensors of each checkpoint, of the squared error of what is generated.

    L = mean over models i, tensors t of  mean (w_it - theta_it)^2 / v_t,   v_t = mean over the zoo (theta_it - mean)^2

    v_t, the variance about the zoo's mean, is that of all models with such a tensor, by name and shape; where it is 0
    the mean square counts instead. `normalise` none takes 1 for all.
    """

    def __init__(self, options: Regression, hypernetwork: Hypernetwork, source: object) -> None:
        if not isinstance(source, Zoo):
            raise InvalidInput("the objective 'regression' learns from a zoo of checkpoints", "give --zoo FOLDER")
        self.options, self.hypernetwork, self.zoo = options, hypernetwork, source
        self.members = source.of("train")
        if not self.members:
            raise InvalidInput("the zoo has no checkpoints to train on", 'mark some with "split": "train"')
        for member in self.members:
            hypernetwork.target(member.spec)
        self._held: dict[str, dict[str, Tensor]] = {}
        self._kept = 0
        self._scales = self._variances() if options.normalise == "tensor" else {}

    def turns(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """One turn."""
        return {"weights": self.hypernetwork.parameters()}

    def turn(self, step: int) -> str:
        """Always the same."""
        return "weights"

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        """The mean over one meta-batch, drawn without replacement."""
        chosen = torch.randperm(len(self.members), generator=rng)[: self.options.meta_batch].tolist()
        groups: dict[str, list[Member]] = {}
        for i in chosen:
            groups.setdefault(self.members[i].spec.hash, []).append(self.members[i])
        return torch.stack([self._summed(group) for group in groups.values()]).sum() / len(chosen)

    def _summed(self, group: list[Member]) -> Tensor:
        """The errors of checkpoints of one architecture, summed over them."""
        device, spec = next(self.hypernetwork.parameters()).device, group[0].spec
        names = group[0].condition
        condition = {name: torch.stack([m.condition[name] for m in group]).to(device) for name in names}
        made = self.hypernetwork(condition, spec, list(range(len(group))))  # (B or 1, *shape) each
        wanted = [self._loaded(member) for member in group]
        errors = []
        for slot in spec.slots:
            there = torch.stack([tensors[slot.name] for tensors in wanted]).to(device)  # (B, *shape)
            scale = self._scales.get((slot.name, slot.shape), 1.0)
            errors.append((made[slot.name] - there).square().reshape(len(group), -1).mean(1) / scale)
        return torch.stack(errors).mean(0).sum()

    def _loaded(self, member: Member) -> dict[str, Tensor]:
        if member.label in self._held:
            return self._held[member.label]
        tensors = self.zoo.load(member)
        self._kept += sum(tensor.numel() for tensor in tensors.values())
        if self._kept <= _HELD:
            self._held[member.label] = tensors
        return tensors

    def _variances(self) -> dict[tuple[str, tuple[int, ...]], float]:
        """v_t of each tensor, by name and shape, from sums in fp64."""
        sums: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        squares: dict[tuple[str, tuple[int, ...]], float] = {}
        counts: dict[tuple[str, tuple[int, ...]], int] = {}
        for member in self.members:
            for name, tensor in self._loaded(member).items():
                key, exact = (name, tuple(tensor.shape)), tensor.double()
                sums[key] = sums[key] + exact if key in sums else exact
                squares[key] = squares.get(key, 0.0) + float(exact.square().mean())
                counts[key] = counts.get(key, 0) + 1
        found = {}
        for key, count in counts.items():
            power = squares[key] / count
            variance = power - float((sums[key] / count).square().mean())
            # what all have in common, a tensor that was never trained, leaves nothing but rounding
            found[key] = variance if variance > 1e-9 * power else power or 1.0
        return found
