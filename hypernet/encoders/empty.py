"""No condition: one code, which is learned."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Empty(Params):
    """Options of the encoder `empty`."""

    std: float = Field(1.0, ge=0, allow_inf_nan=False, description="standard deviation of the code at first")
    init: Literal["normal", "uniform"] = Field("normal", description="what the code is drawn from")


@encoders("empty", Empty)
class EmptyEncoder(nn.Module):
    """A learned code (1, 1, width), whatever is asked for: for generators of one task and one target."""

    def __init__(self, options: Empty, site: Site) -> None:
        super().__init__()
        drawn = torch.randn(site.width) if options.init == "normal" else (2 * torch.rand(site.width) - 1) * math.sqrt(3)
        self.code = nn.Parameter(options.std * drawn)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(1, 1, width)."""
        return self.code[None, None]
