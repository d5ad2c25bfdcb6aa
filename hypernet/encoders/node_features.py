"""What a graph network sees of a node before it sees any edge: sizes as numbers, or GHN-3's types and buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from paramsmith.hypernet.targets.graph import Graph

SIZES = 11  # numbers that tell a shape
TYPES = tuple(  # GHN-3's kinds of nodes
    "max_pool avg_pool sep_conv dil_conv conv msa cse sum concat input bias bn ln pos_enc glob_avg".split()  # noqa: SIM905
)
_LOOKED_UP = frozenset(["embedding", "embedding_bag", "add", "cat", "stack", "index", "index_select"])
_GATES = frozenset(["sigmoid", "hardsigmoid"])
_MOST_DIMENSIONS = 5


@lru_cache(maxsize=65536)
def sizes(shape: tuple[int, ...]) -> tuple[float, ...]:
    """A shape as SIZES numbers: log2 of outputs, inputs, the two sides of a kernel and all of it, over 4; dimensions.

    >>> sizes((64, 32, 3, 3))
    (1.5, 1.25, 0.396..., 0.396..., 3.542..., 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    """
    filled = [max(1, size) for size in shape]
    sides = (*filled[:2], math.prod(filled[2:-1]), *filled[-1:])[:4] if len(filled) > 3 else filled
    four = [*sides, 1, 1, 1, 1][:4]
    logs = [math.log2(size) / 4 for size in (*four, math.prod(filled))]
    count = min(len(shape), _MOST_DIMENSIONS)
    return (*logs, *(1.0 if count == each else 0.0 for each in range(_MOST_DIMENSIONS + 1)))


class Sizes(nn.Module):
    """Shapes through a small network: no shape is unknown, and none is cut off."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZES, width), nn.Linear(width, width)

    def forward(self, shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """(n, width)."""
        weight = self.first.weight
        told = torch.tensor([sizes(s) for s in shapes], dtype=weight.dtype, device=weight.device).view(-1, SIZES)
        found: Tensor = self.second(gelu(self.first(told)))
        return found


class Buckets(nn.Module):
    """GHN-3's shapes: for (out, in, height, width) a row each, of two tables of width/4, side by side.

    A size that is in no table takes the nearest row (4 to 7 channels that of 8, a kernel of 2 that of 3), one too
    large the last. A node that reads no tensor has rows of its own.
    """

    def __init__(self, width: int, kernel: int, classes: int) -> None:
        super().__init__()
        channels = {1, 3, classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}
        sides = {14, 16, *range(1, max(12, kernel), 2)}
        self.channels, self.sides = tuple(sorted(channels)), tuple(sorted(sides))
        self.channel = nn.Embedding(len(channels) + 1, width // 4)
        self.side = nn.Embedding(len(sides) + 1, width // 4)

    def rows(self, shape: tuple[int, ...] | None) -> tuple[int, int, int, int]:
        """The rows of a shape, None where there is none.

        >>> Buckets(4, kernel=16, classes=10).rows((64, 5, 2, 40))
        (10, 2, 1, 9)
        """
        if shape is None:
            return len(self.channels), len(self.channels), len(self.sides), len(self.sides)
        out, into, high, wide = _as_kernel(shape)
        channels = [8 if 4 <= each < 8 and each not in self.channels else each for each in (out, into)]
        sides = [3 if each == 2 else each for each in (high, wide)]
        a, b = (_nearest(self.channels, each) for each in channels)
        c, d = (_nearest(self.sides, each) for each in sides)
        return a, b, c, d

    def forward(self, shapes: Sequence[tuple[int, ...] | None]) -> Tensor:
        """(n, width)."""
        rows = torch.tensor([self.rows(s) for s in shapes], device=self.channel.weight.device).view(-1, 4)
        return torch.cat([self.channel(rows[:, :2]).flatten(1), self.side(rows[:, 2:]).flatten(1)], 1)


def as_ghn3(graph: Graph) -> Graph:
    """The graph without the nodes that GHN-3 has no kind for; made once."""
    if "ghn3" not in graph.kept:
        graph.kept["ghn3"] = graph.without([kind is None for kind in node_types(graph)])
    return graph.kept["ghn3"]


def node_types(graph: Graph) -> list[int | None]:
    """Which of TYPES each node is, by number; None where GHN-3 has no node, as for activations.

    A node that holds a slot always has a type. Depthwise convolutions, dilated or not, are `sep_conv`; a convolution
    is taken for one where its kernel has one input channel and what it reads is not the input.
    """
    before: list[list[str]] = [[] for _ in graph.nodes]
    for start, stop in graph.edges:
        before[stop].append(graph.nodes[start].op.rpartition(".")[2])
    holds = set(graph.node_of)
    found = [_type(graph, number, before[number], number in holds) for number in range(len(graph.nodes))]
    return [None if each is None else TYPES.index(each) for each in found]


def _type(graph: Graph, number: int, before: Sequence[str], holds: bool) -> str | None:
    op, shape = graph.nodes[number].op.rpartition(".")[2], graph.nodes[number].shape
    if op in ("input", "bias"):
        return op
    if op.endswith("_norm") and not op.startswith("_"):
        return "bn" if op in ("batch_norm", "instance_norm", "sync_batch_norm") else "ln"
    if op.startswith("conv"):
        return "sep_conv" if len(shape) > 2 and shape[1] == 1 < shape[0] and before != ["input"] else "conv"
    if op == "linear":
        return "conv"
    if holds:
        return "pos_enc" if op in _LOOKED_UP else "conv" if len(shape) > 1 else "bias"
    return _type_without_tensor(op, before)


def _type_without_tensor(op: str, before: Sequence[str]) -> str | None:
    if "softmax" in op or op == "scaled_dot_product_attention":
        return "msa"
    if op in ("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
        return "glob_avg"
    for kind in ("max_pool", "avg_pool"):
        if kind in op:
            return kind
    if op in ("add", "cat", "stack") and len(before) > 1:
        return "sum" if op == "add" else "concat"
    return "cse" if op == "mul" and len(before) > 1 and not _GATES.isdisjoint(before) else None


def _as_kernel(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Any shape as (out, in, height, width); a table of positions (1, T, D) as D channels of a square of side sqrt T.

    >>> _as_kernel((10,)), _as_kernel((1, 65, 32)), _as_kernel((8, 4, 3))
    ((10, 1, 1, 1), (1, 32, 8, 8), (8, 4, 3, 1))
    """
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1:
        return 1, shape[2], math.isqrt(shape[1]), math.isqrt(shape[1])
    first, second, third, fourth = (*shape, 1, 1, 1, 1)[:4]
    return first, second, third, fourth


def _nearest(known: Sequence[int], size: int) -> int:
    return int(np.abs(np.array(known) - size).argmin())
