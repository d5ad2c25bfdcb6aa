"""What raw tensors are added to: zeros, a fresh draw, a frozen draw, or learned tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.kept import Kept
from paramsmith.hypernet.parametrizations.schemes import Scheme, centre, drawn
from paramsmith.hypernet.parametrizations.slot_tensors import SlotTensors, one_target
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import drawn_seed
from paramsmith.hypernet.targets.target import Slot
from paramsmith.params import Params
from paramsmith.parts import bases

HELD = 1 << 27  # bytes that a bank remembers, so as not to draw them at every step


class Placed(nn.Module):
    """A part without parameters, which still has to know the device that it was moved to."""

    here: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("here", torch.zeros(()), persistent=False)


@bases("zeros")
class Zeros(Placed):
    """Nothing: 0 everywhere, and 1 where a tensor scales what a norm puts out. (1, S, *shape), one number in memory.

    A generator on this base makes the whole weight.
    """

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(1, S, *shape)."""
        value = torch.full((), centre(slots[0]), device=self.here.device)
        return value.expand(1, len(slots), *slots[0].shape)


class Standard(Params):
    """Options of the base `standard`."""

    kind: Scheme = Field("default", description="how layers are drawn: default is the architecture's own way")


@bases("standard", Standard)
class StandardBase(Placed):
    """A fresh initialisation, one for each seed: what the target would begin with. (B, S, *shape), B seeds.

    By role, as torch does: layers and their biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)), embeddings N(0, 1), positions
    N(0, 0.02), norms 1 and 0; where a slot says its standard deviation, that. A tensor depends on its seed and name.
    """

    def __init__(self, options: Standard, site: Site) -> None:
        super().__init__()
        self.kind: Scheme = options.kind

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(B, S, *shape)."""
        made = [[drawn(slot, seed, slot.name, self.kind, self.here.device) for slot in slots] for seed in seeds]
        return torch.stack([torch.stack(row) for row in made])


class Bank(Params):
    """Options of the base `bank`."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the frozen draw, kept with the generator")
    period: int = Field(
        5, ge=0, description="numbers in a tensor's name count modulo this, so that deep layers repeat; 0: they do not"
    )


@bases("bank", Bank)
class BankBase(Placed):
    """A frozen initialisation, the same at every call and for every target: (1, S, *shape). Nothing of it is stored.

    An entry depends on its place (i, j, ...), on the role and on the name of its tensor, not on the tensor's size: a
    narrower layer is the corner of a wider one, times the standard deviation that its own fan-in asks for. So what a
    hypernetwork learns to add to a layer still fits when the layer grows.

    Numbers in names are layers; modulo `period` they leave a few tables that the layers take in turns: neighbours
    differ, and a layer deeper than any seen in training begins as one that was. Layers that are numbered in steps
    of 1 to 4, as in an `nn.Sequential`, still take all 5 tables in turns.
    """

    def __init__(self, options: Bank, site: Site) -> None:
        super().__init__()
        self.seed, self.period = options.seed, options.period
        self._kept = Kept(HELD)

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(1, S, *shape)."""
        return torch.stack([self._table(slot) for slot in slots])[None]

    def key(self, slot: Slot) -> str:
        """What a slot's table is known by.

        >>> BankBase(Bank(period=5), Site(0)).key(Slot("layers.12.fc1.weight", (4, 4), "F32", "matrix", 4))
        'matrix/layers.2.fc1.weight'
        """
        name = re.sub(r"(?<![^.])\d+(?![^.])", self._turned, slot.name) if self.period else slot.name
        return f"{slot.role}/{name}"

    def _turned(self, number: re.Match[str]) -> str:
        return str(int(number[0]) % self.period)

    def _table(self, slot: Slot) -> Tensor:
        key, device = self.key(slot), self.here.device
        wanted = (key, slot.shape, slot.fan_in, slot.std, device)
        return self._kept.get(wanted, lambda: drawn(slot, self.seed, key, device=device))


class Learned(Params):
    """Options of the base `learned`."""

    kind: Scheme = Field("default", description="how it begins: default is the architecture's own way")
    factor: Literal["none", "layer"] = Field("none", description="layer: times a learned number, 1 at first, a layer")


@bases("learned", Learned, paper="arXiv:2304.07645")
class LearnedBase(nn.Module):
    """Learned weights theta0 of the one target, initialised as the target would be: (1, S, *shape).

    A hypernetwork on it learns what a condition changes (MIP); one that adds nothing is a learned initialisation
    (MAML). With `factor` a layer's tensors are s theta0, s learned (Self-Tuning Networks).

    Papers: arXiv:2304.07645, arXiv:1903.03088.
    """

    def __init__(self, options: Learned, site: Site) -> None:
        super().__init__()
        spec, seed = one_target(site, "base 'learned'"), drawn_seed()
        self.theta = SlotTensors({slot.name: drawn(slot, seed, slot.name, options.kind) for slot in spec.slots})
        layers = list(dict.fromkeys(_layer(slot) for slot in spec.slots))
        self._place = {layer: place for place, layer in enumerate(layers)}
        self.factor = nn.Parameter(torch.ones(len(layers))) if options.factor == "layer" else None

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(1, S, *shape)."""
        theta = self.theta.stacked(slots)[None]
        if self.factor is None:
            return theta
        factor = self.factor[[self._place[_layer(slot)] for slot in slots]]
        return theta * factor.view(-1, *[1] * len(slots[0].shape))


def _layer(slot: Slot) -> str:
    return slot.name.rpartition(".")[0]
