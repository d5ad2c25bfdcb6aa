"""Gates: a second set of weights, each row of which is let in as far as the code says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.decoders.fixed import Places
from paramsmith.hypernet.parametrizations.schemes import drawn
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import drawn_seed
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import decoders


class Gate(Params):
    """Options of the decoder `gate`."""

    std: float = Field(0.01, ge=0, allow_inf_nan=False, description="standard deviation of V at first")


@decoders("gate", Gate, paper="arXiv:1903.03088")
class GateDecoder(nn.Module):
    """diag(V lam) W_h for every tensor: each row of a second set of weights, times a linear function of the code lam.

    With the base `learned` with a factor a layer, a linear layer so made is that of a Self-Tuning Network,

        y = s (W x + b) + (V_w lam) * (W_h x) + (V_b lam) * b_h

    W_h begins as the target would, V as N(0, std**2); twice the target's parameters, and one a row and number of lam.
    For one target; InvalidInput where there is none.

    Paper: Self-Tuning Networks, arXiv:1903.03088.
    """

    def __init__(self, options: Gate, site: Site) -> None:
        super().__init__()
        self.places = Places(site, "gate")
        spec, seed = self.places.spec, drawn_seed()
        groups = [[spec.slots[number] for number in group] for group in spec.groups]
        self.weights = nn.ParameterList(
            torch.stack([drawn(slot, seed, slot.name) for slot in group]) for group in groups
        )
        self.gates = nn.ParameterList(
            options.std * torch.randn(len(group), *group[0].shape[:1], site.width) for group in groups
        )

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a target that it was not built for."""
        self.places.check(spec)

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        """(B, S, d) -> (B, S, *shape)."""
        group = self.places.group(slots)
        weights = self.places.rows(self.weights[group], slots)  # (S, *shape)
        gates = self.places.rows(self.gates[group], slots)  # (S, rows, d), or (S, d) of a single number
        opened = torch.einsum("s...h,bsh->bs...", gates, codes)
        return opened.view(*opened.shape, *[1] * (weights.dim() + 1 - opened.dim())) * weights
