"""Regression onto the checkpoints of a zoo, each from what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.hypernetwork import Hypernetwork
from paramsmith.hypernet.zoos.zoo import Member, Zoo
from paramsmith.params import Params
from paramsmith.parts import objectives


class Regression(Params):
    """Options of the objective `regression`."""

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
        groups: dict[object, list[Member]] = {}
        for member in (self.members[i] for i in chosen):
            sizes = tuple(tensor.shape for tensor in member.condition.values())
            groups.setdefault((member.spec.hash, sizes), []).append(member)
        return torch.stack([self._summed(group) for group in groups.values()]).sum() / len(chosen)

    def _summed(self, group: list[Member]) -> Tensor:
        """The errors of checkpoints of one architecture and one shape of condition, summed over them."""
        device, spec = next(self.hypernetwork.parameters()).device, group[0].spec
        names = group[0].condition
        condition = {name: torch.stack([m.condition[name] for m in group]).to(device) for name in names}
        made = self.hypernetwork(condition, spec, list(range(len(group))))  # (B or 1, *shape) each
        wanted = self.zoo.batch(group)
        errors = []
        for slot in spec.slots:
            there = wanted[slot.name].to(device)  # (B, *shape)
            scale = self._scales.get((slot.name, slot.shape), 1.0)
            errors.append((made[slot.name] - there).square().reshape(len(group), -1).mean(1) / scale)
        return torch.stack(errors).mean(0).sum()

    def _variances(self) -> dict[tuple[str, tuple[int, ...]], float]:
        """v_t of each tensor, by name and shape, from sums in fp64."""
        sums: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        squares: dict[tuple[str, tuple[int, ...]], float] = {}
        counts: dict[tuple[str, tuple[int, ...]], int] = {}
        for member in self.members:
            for name, tensor in self.zoo.load(member).items():
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
