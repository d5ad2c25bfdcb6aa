"""The decoder of generators that learn nothing but a start: it adds nothing to the base."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot
from paramsmith.params import Params
from paramsmith.parts import decoders


@decoders("none")
class NoDecoder(nn.Module):
    """Zeros, so that the weights are those of the base: learned initialisations (MAML, Reptile), plain schemes."""

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape), all zero; one number in memory."""
        return codes.new_zeros(()).expand(*codes.shape[:2], *slots[0].shape)
