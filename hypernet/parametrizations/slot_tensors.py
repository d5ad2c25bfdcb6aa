"""Tensors that belong to the slots of one target, kept under the names of the slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec


class SlotTensors(nn.Module):
    """One tensor a slot; learned, or held as buffers. Names in a file are those of the slots, with / for their dots.

    >>> held = SlotTensors({"fc.weight": torch.ones(2, 3)})
    >>> list(held.state_dict()), held["fc.weight"].shape
    (['fc/weight'], torch.Size([2, 3]))
    """

    def __init__(self, values: Mapping[str, Tensor], *, learned: bool = True) -> None:
        super().__init__()
        self._places: dict[str, str] = {}
        for name, value in values.items():
            place = name.replace(".", "/")
            while hasattr(self, place):  # `a.b` beside `a/b`, or what a module has already
                place += "/"
            self._places[name] = place
            if learned:
                self.register_parameter(place, nn.Parameter(value))
            else:
                self.register_buffer(place, value)

    def __getitem__(self, name: str) -> Tensor:
        held: Tensor = getattr(self, self._places[name])
        return held

    def stacked(self, slots: Sequence[Slot]) -> Tensor:
        """(S, *shape) of slots of one shape."""
        return torch.stack([self[slot.name] for slot in slots])


def one_target(site: Site, part: str) -> TargetSpec:
    """The target of a site; InvalidInput where there is none and the part is for one target only."""
    if site.spec is None:
        hint = "train it on tasks, or on a zoo, whose networks all have the same tensors"
        raise InvalidInput(f"the {part} is for one target, and none is given", hint)
    return site.spec
