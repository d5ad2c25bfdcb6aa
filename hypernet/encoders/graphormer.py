"""Graphormer: a transformer over the nodes of a graph, in which attention knows how far nodes are apart.

Paper: Do Transformers Really Perform Bad for Graph Representation?, arXiv:2106.05234; as GHN-3 has it,
arXiv:2303.04143.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from paramsmith.hypernet.targets.graph import Graph

MAX_DEGREE, MAX_FROM_INPUT, EDGE_ROWS = 100, 1000, 257
_NO_PATH = 2  # its row in the table of edges; a path of length n has n rows more


class Centrality(nn.Module):
    """How many edges end and start at a node, and how far it is from the input, clipped to what the tables hold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_degree = nn.Embedding(MAX_DEGREE + 1, width)
        self.out_degree = nn.Embedding(MAX_DEGREE + 1, width)
        self.from_input = nn.Embedding(MAX_FROM_INPUT + 1, width)

    def forward(self, graph: Graph) -> Tensor:
        """(nodes, width)."""
        into = self._looked_up(self.in_degree, graph.in_degrees, MAX_DEGREE)
        out = self._looked_up(self.out_degree, graph.out_degrees, MAX_DEGREE)
        return into + out + self._looked_up(self.from_input, graph.from_input, MAX_FROM_INPUT)

    @staticmethod
    def _looked_up(table: nn.Embedding, numbers: np.ndarray[tuple[int], np.dtype[np.integer]], most: int) -> Tensor:
        rows = torch.from_numpy(np.minimum(numbers, most).astype(np.int64))
        found: Tensor = table(rows.to(table.weight.device))
        return found


class Graphormer(nn.Module):
    """Layers x + attention(norm x), x + mlp(norm x); the logits of all have the same bias of the edges.

    With A the matrix of shortest paths, of which those above `max_distance` count as none,

        logits_ij = q_i k_j / sqrt(d / heads) + MLP[e(A_ij), e(A_ji)]

    Queries, keys and values have no bias; the layers of the MLP of a node are 4 d wide, with GELU.
    """

    def __init__(self, width: int, layers: int, heads: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.edges = _EdgeBias(width, heads)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))

    def forward(self, nodes: Tensor, graph: Graph) -> Tensor:
        """(nodes, width) -> (nodes, width)."""
        bias = self.edges(graph.within(self.max_distance), self.max_distance)  # (heads, nodes, nodes)
        for layer in self.layers:
            nodes = layer(nodes, bias)
        return nodes


def embed_widely(module: nn.Module) -> None:
    """Fill every embedding anew: truncated normal, std d**-0.5."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            std = part.embedding_dim**-0.5
            nn.init.trunc_normal_(part.weight, std=std)


class _EdgeBias(nn.Module):
    """The bias of attention for each pair of nodes, by the length of the path between them.

    Only one direction of a pair has a path, so the MLP runs once for each length and direction, not for each pair.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(EDGE_ROWS, width)
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, heads))

    def forward(self, paths: np.ndarray[tuple[int, int], np.dtype[np.int16]], longest: int) -> Tensor:
        """(nodes, nodes) -> (heads, nodes, nodes)."""
        device = self.table.weight.device
        lengths = torch.arange(-longest, longest + 1, device=device)  # backwards, none, forwards
        both = torch.stack([lengths.clamp_min(0), (-lengths).clamp_min(0)], 1) + _NO_PATH  # (lengths, 2)
        biases = self.layers(self.table(both).flatten(1))  # (lengths, heads)
        signed = torch.from_numpy((paths - paths.T).astype(np.int64) + longest).to(device)
        return embedding(signed, biases).permute(2, 0, 1).contiguous()  # read by every layer


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read = nn.Linear(width, 3 * width, bias=False)
        self.write = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, nodes: Tensor, bias: Tensor) -> Tensor:
        read = self.read(self.before_attention(nodes)).unflatten(1, (3, self.heads, -1))  # (nodes, 3, heads, d / heads)
        query, key, value = read.permute(1, 2, 0, 3)[
            :, None
        ]  # (1, heads, nodes, d / heads): four axes for torch's kernel
        told = scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        nodes = nodes + self.write(told[0].transpose(0, 1).flatten(1))
        after: Tensor = nodes + self.mlp(self.before_mlp(nodes))
        return after
