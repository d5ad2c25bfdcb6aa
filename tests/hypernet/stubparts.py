"""Small parts for the tests of generators as artifacts, and two targets; registered only while a test runs.

python -m tests.hypernet.stubparts WORDS...      `paramsmith WORDS...` with these parts, in a process of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.hypernet.protocols import Chosen, Design, Site
from paramsmith.hypernet.targets.target import Buffer, Slot, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import bases, decoders, encoders, generators, objectives, scales

REGISTRIES = (encoders, decoders, bases, scales, objectives, generators)
WIDTH = 8


class Nothing(Params):
    """No options."""


class Rank(Params):
    """Options of the decoder."""

    rank: int = Field(2, ge=1, le=4096, description="rank of what is added")
    largest: int = Field(64, ge=1, le=1_000_000, description="longest axis")
    depth: int = Field(1, ge=1, description="layers")
    poison: str = Field("", description="a slot that comes out as NaN")


class Code(nn.Module):
    """One learned code for every slot, moved by the condition where there is one."""

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(1, 1, site.width))
        count = sum(torch.Size(shape).numel() for shape in site.condition.values())
        self.read = nn.Linear(count, site.width) if count else None

    def forward(self, condition: Any, spec: TargetSpec) -> Tensor:
        if self.read is None:
            return self.code
        flat = torch.cat([condition[name].reshape(len(condition[name]), -1).float() for name in sorted(condition)], 1)
        return self.code + self.read(flat)[:, None]


class Factors(nn.Module):
    """Low rank: rows of two tables, chosen by place, weighed by the code."""

    def __init__(self, options: Rank, site: Site) -> None:
        super().__init__()
        self.options = options
        self.weigh = nn.ModuleList(nn.Linear(site.width, options.rank) for _ in range(options.depth))
        self.rows = nn.Parameter(torch.randn(options.largest, options.rank))
        self.register_buffer("columns", torch.randn(options.rank, options.largest))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        # not saved: made anew from a seed of its own whenever the part is built
        held = torch.randn(3, generator=torch.Generator().manual_seed(7))
        self.register_buffer("bank", held, persistent=False)

    def forward(self, codes: Tensor, slots: Sequence[Slot]) -> Tensor:
        shape = slots[0].shape
        matrix = (shape[0], torch.Size(shape[1:]).numel()) if shape else (1, 1)
        weights = self.weigh[0](codes)  # (B, S, r)
        left = self.rows[torch.arange(matrix[0]) % len(self.rows)]
        right = self.columns[:, torch.arange(matrix[1]) % self.columns.shape[1]]
        made = torch.einsum("mr,bsr,rn->bsmn", left, weights, right).reshape(*codes.shape[:2], *shape)
        made = made + self.bank[0]
        for place, slot in enumerate(slots):
            if slot.name == self.options.poison:
                made[:, place].view(-1)[-1:] = torch.nan
        return made


class Plain(nn.Module):
    """Nothing to add to."""

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        return torch.zeros(1, len(slots), *slots[0].shape)


class Drawn(nn.Module):
    """Numbers that depend on the sample's seed and the name of the slot."""

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, slots: Sequence[Slot], seeds: Sequence[int]) -> Tensor:
        def draw(seed: int, slot: Slot) -> Tensor:
            own = (seed ^ sum(ord(c) * 257**i for i, c in enumerate(slot.name[-6:]))) % 2**63
            return torch.randn(slot.shape, generator=torch.Generator().manual_seed(own)) * 0.02

        return torch.stack([torch.stack([draw(seed, slot) for slot in slots]) for seed in seeds])


class Same(nn.Module):
    """As it is."""

    def __init__(self, options: Params, site: Site) -> None:
        super().__init__()

    def forward(self, raw: Tensor, slots: Sequence[Slot]) -> Tensor:
        return raw


class Smaller:
    """An objective: numbers of the decoder near zero."""

    def __init__(self, options: Params, hypernetwork: Any, source: object) -> None:
        self.hypernetwork = hypernetwork

    def turns(self) -> dict[str, list[nn.Parameter]]:
        return {"all": list(self.hypernetwork.parameters())}

    def turn(self, step: int) -> str:
        return "all"

    def loss(self, step: int, rng: torch.Generator) -> Tensor:
        return self.hypernetwork.decoder.rows.square().mean()


class Preset(Rank):
    """Options of the preset."""

    fixed: bool = Field(False, description="for the one target it is built for")
    seed: int = Field(0, description="of nothing")


def stub(options: Preset, site: Site) -> Design:
    """Low rank on top of drawn numbers, to be trained.

    A second paragraph.
    """
    inner = options.model_dump(exclude={"fixed", "seed"})
    parts = (Chosen("stub_code"), Chosen("stub_factors", inner), Chosen("stub_drawn"), Chosen("stub_same"))
    return Design(WIDTH, *parts, Chosen("stub_loss"), fixed=options.fixed)


def untrained(options: Nothing, site: Site) -> Design:
    """Drawn numbers alone, which need no training."""
    parts = (Chosen("stub_code"), Chosen("stub_factors", {"rank": 1}), Chosen("stub_drawn"), Chosen("stub_same"))
    return Design(1, *parts, Chosen(""), fixed=False)


def register() -> None:
    """Put the parts into the registries."""
    encoders("stub_code", Nothing)(Code)
    decoders("stub_factors", Rank, paper="arXiv:2405.16287")(Factors)
    bases("stub_plain", Nothing)(Plain)
    bases("stub_drawn", Nothing)(Drawn)
    scales("stub_same", Nothing)(Same)
    objectives("stub_loss", Nothing)(Smaller)
    generators("stub", Preset, paper="arXiv:2405.16287")(stub)
    generators("stub_untrained", Nothing)(untrained)


def small_spec(dtype: str = "F32", config: dict[str, object] | None = None) -> TargetSpec:
    """A tied embedding, two equal layers, a norm, a head with a class axis, buffers."""
    slots = [
        Slot("embed.weight", (11, 6), dtype, "embedding", 1, 0.02, copies=("lm_head.weight",)),
        Slot("layer.0.weight", (6, 6), dtype, "matrix", 6, 0.02),
        Slot("layer.0.bias", (6,), dtype, "bias", 6, 0.02),
        Slot("layer.1.weight", (6, 6), dtype, "matrix", 6, 0.02),
        Slot("layer.1.bias", (6,), dtype, "bias", 6, 0.02),
        Slot("head.weight", (3, 6), dtype, "head", 6, 0.02, class_axis=0),
        Slot("scale", (), dtype, "norm_scale", 1, None),
    ]
    buffers = (Buffer("norm.running_var", (6,), dtype, 1.0), Buffer("norm.num_batches_tracked", (), "I64", 0.0))
    return TargetSpec(tuple(slots), buffers, config=config)


if __name__ == "__main__":
    import sys

    from paramsmith.cli.app import cli

    register()
    cli.main(sys.argv[1:])
