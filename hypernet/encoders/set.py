"""A set of vectors as one code, in no order: features of examples, rows of a support set."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.vector import Widths
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Set(Params):
    """Options of the encoder `set`."""

    each: Widths = Field((128, 128), min_length=1, description="widths of the layers that see one member")
    together: Widths = Field((128,), description="widths of the layers that see the mean, before the code's own")


@encoders("set", Set, paper="arXiv:1703.06114")
class SetEncoder(nn.Module):
    """Codes (B, 1, width) of `set` (B, n, dim), of which `mask` (B, n) says what is there: rho(mean of phi(x)).

    phi and rho are layers with ReLU, after the last of rho none. Neither the order of the members nor what the mask
    leaves out changes anything; without a mask all are there. An empty set has the mean 0. InvalidInput for a site
    without such a condition, and for sets of another width or with numbers that are not finite.

    Paper: Deep Sets, arXiv:1703.06114.
    """

    def __init__(self, options: Set, site: Site) -> None:
        super().__init__()
        self.dim = dim_of(site, "set")
        self.phi = nn.Sequential(*_layers([self.dim, *options.each]))
        self.rho = nn.Sequential(*_layers([options.each[-1], *options.together, site.width])[:-1])

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width)."""
        members, there = members_of(condition, self.dim)  # (B, n, dim), (B, n)
        mask = there[..., None]
        told = torch.where(mask, self.phi(members), 0.0)  # (B, n, h)
        code: Tensor = self.rho(told.sum(1) / mask.sum(1).clamp_min(1))
        return code[:, None]


def dim_of(site: Site, name: str) -> int:
    """The width of the vectors of a condition `set`, for the encoder `name`. InvalidInput where there is none."""
    shape = site.condition.get("set", ())
    if len(shape) != 2 or not shape[1]:
        raise InvalidInput(f"the encoder '{name}' wants a condition `set` of (n, dim) numbers", "give sets of vectors")
    return shape[1]


def members_of(condition: Condition, dim: int) -> tuple[Tensor, Tensor]:
    """`set` (B, n, dim), 0 where nothing is, and `mask` (B, n). InvalidInput for what is not so, or not finite."""
    found = condition.get("set")
    if found is None or found.dim() != 3 or found.shape[2] != dim:
        told = "nothing" if found is None else "x".join(map(str, found.shape))
        raise InvalidInput(f"a condition is `set`, (B, n, {dim}), and there is {told}", "give a set for each")
    mask = condition.get("mask")
    mask = torch.ones_like(found[..., 0], dtype=torch.bool) if mask is None else mask.bool()
    if mask.shape != found.shape[:2]:
        fact = f"the mask of a condition is {'x'.join(map(str, mask.shape))}, for sets {tuple(found.shape[:2])}"
        raise InvalidInput(fact, "one number for each member, 0 where there is none")
    members = torch.where(mask[..., None], found, 0.0)  # whatever stands where nothing is
    if not bool(torch.isfinite(members).all()):
        raise InvalidInput("a set of the condition holds a number that is not finite", "give finite numbers")
    return members, mask


def _layers(widths: list[int]) -> list[nn.Module]:
    return [part for sizes in pairwise(widths) for part in (nn.Linear(*sizes), nn.ReLU())]
