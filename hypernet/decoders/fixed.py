"""What decoders for one target share: their tensors are stacked, one stack a group of `TargetSpec.groups`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.parametrizations.slot_tensors import one_target
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec


class Places:
    """Where each slot of the one target is: in which of its groups, and at which place of the group.

    A decoder with a tensor (slots of the group, ...) for each group gets the rows of some slots of one group by

        places.rows(stacked[places.group(slots)], slots)                  (S, ...)

    `decoder` is its name, for messages. InvalidInput for a site without one target.
    """

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
        """The number of the group that all these slots belong to."""
        return self._of[slots[0].name][0]

    def rows(self, stacked: Tensor, slots: Sequence[Slot]) -> Tensor:
        """The rows (S, ...) of some slots, in their order, from what is stacked for the group (slots of it, ...)."""
        places = [self._of[slot.name][1] for slot in slots]
        if places == list(range(places[0], places[0] + len(places))):
            return stacked[places[0] : places[0] + len(places)]
        return stacked[places]
