"""Several things that are asked for at once: the codes of several encoders, added or side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.model import built
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.target import TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders


class Source(Params):
    """One encoder of several."""

    name: str = Field(min_length=1, max_length=200, description="which encoder")
    options: dict[str, object] = Field(default_factory=dict, description="its options")
    width: int | None = Field(None, ge=1, le=1_000_000, description="width of its codes; else that of all")


class Joined(Params):
    """Options of the encoder `joined`."""

    sources: tuple[Source, ...] = Field(min_length=1, max_length=16, description="encoders: name, options and width")
    how: Literal["add", "concatenate"] = Field("add", description="add: each behind a linear layer of its own")
    dropout: float = Field(0.1, ge=0, lt=1, description="how often a condition goes without a source in training")


@encoders("joined", Joined)
class JoinedEncoder(nn.Module):
    """The codes of several encoders: sum_i (W_i c_i + b_i), or c_1, c_2, ... side by side.

    Codes are one a class if those of any source are; a source with one code for all gives it to each. In training, each
    condition goes without a source, that is with zeros in place of its part, as often as `dropout` says. InvalidInput
    where widths that are put side by side do not come to that of the codes, for an encoder that goes by the graph of
    the target, and for one with a code a slot.
    """

    def __init__(self, options: Joined, site: Site) -> None:
        super().__init__()
        self.how, self.dropout = options.how, options.dropout
        self.names = [source.name for source in options.sources]
        self.widths = [source.width or site.width for source in options.sources]
        if options.how == "concatenate" and sum(self.widths) != site.width:
            fact = (
                f"codes of width {' + '.join(map(str, self.widths))} side by side have another width than {site.width}"
            )
            raise InvalidInput(fact, "give each source its width")
        self.sources = nn.ModuleList(
            built(encoders, {"name": source.name, "options": source.options}, replace(site, width=width))
            for source, width in zip(options.sources, self.widths, strict=True)
        )
        for name, source in zip(self.names, self.sources, strict=True):
            if callable(getattr(source, "check", None)):
                raise InvalidInput(f"the encoder {name!r} goes by the graph of the target", "use it alone")
        self.by_class = any(getattr(source, "by_class", False) for source in self.sources)
        added = options.how == "add"
        self.layers = nn.ModuleList(nn.Linear(width, site.width) for width in self.widths) if added else None

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(B, 1, width), or (B, k, width)."""
        found = [source(condition, spec) for source in self.sources]  # (B or 1, k or 1, d_i)
        batch, several = (max(codes.shape[axis] for codes in found) for axis in (0, 1))
        for name, source, codes in zip(self.names, self.sources, found, strict=True):
            if codes.shape[1] > 1 and not getattr(source, "by_class", False):
                raise InvalidInput(f"the encoder {name!r} has a code a slot, which is not joined", "use it alone")
            if codes.shape[1] not in (1, several) or codes.shape[0] not in (1, batch):
                told = " and ".join("x".join(map(str, other.shape[:2])) for other in found)
                raise InvalidInput(f"the sources of a condition are for {told} codes", "give as many of each")
        if self.layers is not None:
            found = [layer(codes) for layer, codes in zip(self.layers, found, strict=True)]
        kept = [self._kept(codes.expand(batch, several, -1)) for codes in found]
        return torch.stack(kept).sum(0) if self.layers is not None else torch.cat(kept, 2)

    def _kept(self, codes: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return codes
        there = torch.rand(len(codes), 1, 1, device=codes.device) >= self.dropout
        return torch.where(there, codes, 0.0)
