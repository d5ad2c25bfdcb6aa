"""A code as coordinates in fixed directions, which come from a factorised matrix; a row is what they make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import decoders


class Factored(Params):
    """Options of the decoder `factors`."""

    rank: int = Field(100, ge=1, le=65536, description="directions that a row is made of")


@decoders("factors", Factored, paper="arXiv:2504.21018")
class FactorsDecoder(nn.Module):
    """Rows y = (size (W c + b)) P, for slots of one axis, as wide as the site's.

    W, b are learned; the primitives P (rank, columns) and the size of a coordinate are those of the matrix that was
    factorised, kept with the generator. Until the objective `rows` has set them, P is the identity and the size 1.
    InvalidInput for a target that is not rows of one width, and for a rank above that width.

    Paper: HYPEROFA, arXiv:2504.21018.
    """

    primitives: Tensor
    size: Tensor

    def __init__(self, options: Factored, site: Site) -> None:
        super().__init__()
        if site.spec is None or len({slot.shape for slot in site.spec.slots}) != 1:
            raise InvalidInput("the decoder 'factors' makes rows of one width", "give a target of one row")
        self.shape = site.spec.slots[0].shape
        self.check(site.spec)
        if options.rank > self.shape[0]:
            fact = f"rank {options.rank:,} is more than the {self.shape[0]:,} columns of a row"
            raise InvalidInput(fact, "choose a smaller rank")
        self.head = nn.Linear(site.width, options.rank)
        self.register_buffer("primitives", torch.eye(options.rank, self.shape[0]))
        self.register_buffer("size", torch.ones(()))

    @torch.no_grad()
    def set_factors(self, primitives: Tensor, size: float) -> None:
        """Keep the primitives (rank, columns), and how large coordinates are. InvalidInput for another shape."""
        if primitives.shape != self.primitives.shape:
            found, own = tuple(primitives.shape), tuple(self.primitives.shape)
            raise InvalidInput(f"primitives {found} are not those of this generator, {own}", "set its rank to fit")
        self.primitives.copy_(primitives)
        self.size.fill_(size)

    def coordinates(self, codes: Tensor) -> Tensor:
        """(B, S, d) -> (B, S, rank)."""
        made: Tensor = self.size * self.head(codes)
        return made

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, columns)."""
        return self.coordinates(codes) @ self.primitives

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for any target but rows of this width."""
        for slot in spec.slots:
            if len(slot.shape) != 1 or slot.shape != self.shape:
                fact = f"the decoder 'factors' makes rows {self.shape}, and {slot.name} is {slot.shape}"
                raise InvalidInput(fact, "use another decoder")
