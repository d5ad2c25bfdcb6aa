"""A network that is there already, tensor by tensor, for a target: what is merged, or begun with."""

from __future__ import annotations

from torch import Tensor

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.stored import read_tensor
from paramsmith.hypernet.targets.target import TargetSpec


def network_of(checkpoint: Checkpoint, spec: TargetSpec) -> dict[str, Tensor]:
    """All slots, fp32. InvalidInput, naming it, for a tensor that is missing or of another shape."""
    made = {}
    for slot in spec.slots:
        names = [name for name in (slot.name, *slot.copies) if checkpoint.info(name) is not None]
        info = checkpoint.info(names[0]) if names else None
        if info is None or info.shape != slot.shape:
            told = "is missing" if info is None else f"is {list(info.shape)}, not {list(slot.shape)}"
            fact = f"{printable(checkpoint.label)}: tensor {printable(slot.name)} {told}"
            raise InvalidInput(fact, "give models of the generator's target")
        made[slot.name] = read_tensor(checkpoint, names[0]).float()
    return made
