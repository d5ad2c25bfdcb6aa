"""The base that is a trained network: read once, when a generator is built, and saved with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.checkpoint import Checkpoint
from paramsmith.errors import InvalidInput, printable
from paramsmith.hypernet.parametrizations.slot_tensors import SlotTensors, one_target
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.stored import read_tensor
from paramsmith.hypernet.targets.target import Slot
from paramsmith.params import Params
from paramsmith.parts import bases


class Given(Params):
    """Options of the base `checkpoint`."""

    path: str | None = Field(
        None, exclude=True, description="folder, file or model of the Hub; read when a generator is built, not kept"
    )
    trainable: bool = Field(False, description="whether training changes it too")


@bases("checkpoint", Given)
class CheckpointBase(nn.Module):
    """The weights of a checkpoint, for the one target that it is of: (1, S, *shape), in fp32.

    They are saved with the generator. Before `begin` or `load` every number is NaN.
    """

    def __init__(self, options: Given, site: Site) -> None:
        super().__init__()
        self.spec = one_target(site, "base 'checkpoint'")
        empty = {slot.name: torch.full(slot.shape, torch.nan) for slot in self.spec.slots}
        self.theta = SlotTensors(empty, learned=options.trainable)

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        """(1, S, *shape)."""
        return self.theta.stacked(slots)[None]

    def begin(self, options: Given) -> None:
        """Read the checkpoint that the options name: when a generator is built, never when one is loaded."""
        if options.path is None:
            raise InvalidInput("the base 'checkpoint' is given no checkpoint", "say which: a folder, a file, user/name")
        with Checkpoint.open(options.path) as checkpoint:
            shapes = {name: info.shape for name, info in checkpoint.tensors.items() if info.dtype.kind == "float"}
            shapes |= {alias: shapes[name] for alias, name in checkpoint.aliases.items() if name in shapes}
            held = self._held(shapes, options.path)
            checkpoint.fetch(held.values())
            self._fill(held, lambda name: read_tensor(checkpoint, name), options.path)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights from a state dict; InvalidInput where that lacks a tensor, or one is not finite."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}
        self._fill(self._held(shapes, "the state dict"), tensors.__getitem__, "the state dict")

    def _held(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, str]:
        """Under which name each slot is there."""
        held: dict[str, str] = {}
        for slot in self.spec.slots:
            name = next((name for name in (slot.name, *slot.copies) if name in shapes), None)
            if name is None:
                fact = f"{printable(where)}: has no tensor {printable(slot.name)} of floating-point numbers"
                raise InvalidInput(fact, "a checkpoint of the generator's own target is wanted")
            if shapes[name] != slot.shape:
                found = f"{printable(name)} is {list(shapes[name])}, and the target's {list(slot.shape)}"
                raise InvalidInput(
                    f"{printable(where)}: {found}", "a checkpoint of the generator's own target is wanted"
                )
            held[slot.name] = name
        return held

    @torch.no_grad()
    def _fill(self, held: Mapping[str, str], read: Callable[[str], Tensor], where: str) -> None:
        for slot, name in held.items():
            values = read(name)
            if not bool(torch.isfinite(values).all()):
                fact = f"{printable(where)}: {printable(name)} holds a number that is not finite"
                raise InvalidInput(fact, "no generator should begin with it")
            self.theta[slot].copy_(values)
