"""What decoders for one target share: tensors that are stacked group by group, and which slot has which of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.parametrizations.slot_tensors import one_target
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec


class Places:
    """Of the slots of a target: the group of each, and its place in the group. InvalidInput where the target varies."""

    def __init__(self, site: Site, decoder: str) -> None:
        self.spec, self.decoder = one_target(site, f"decoder '{decoder}'"), decoder
        self._of = {
            self.spec.slots[number].name: (group, place)
            for group, numbers in enumerate(self.spec.groups)
            for place, number in enumerate(numbers)
        }

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for any target but the one."""
        known = {slot.name: slot.shape for slot in self.spec.slots}
        for slot in spec.slots:
            if known.get(slot.name) != slot.shape:
                name = printable(slot.name)
                fact = f"the decoder '{self.decoder}' was built for another target, without {name} of this shape"
                raise InvalidInput(fact, "ask for the target that it was built for")

    def group(self, slots: Sequence[Slot]) -> int:
        """Which group the slots belong to."""
        return self._of[slots[0].name][0]

    def rows(self, stacked: Tensor, slots: Sequence[Slot]) -> Tensor:
        """Of what is stacked for a group (slots of the group, ...), what belongs to some of them (S, ...)."""
        places = [self._of[slot.name][1] for slot in slots]
        if places == list(range(places[0], places[0] + len(places))):
            return stacked[places[0] : places[0] + len(places)]
        return stacked[places]
