"""An architecture as codes, one a tensor of it: a transformer over the graph of the target."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.graphormer import Centrality, Graphormer, embed_widely
from paramsmith.hypernet.encoders.node_features import TYPES, Buckets, Sizes, as_ghn3, node_types
from paramsmith.hypernet.protocols import Condition, Site
from paramsmith.hypernet.targets.graph import MAX_NODES, Graph, op_id
from paramsmith.hypernet.targets.target import Role, TargetSpec
from paramsmith.params import Params
from paramsmith.parts import encoders

OPERATIONS, SIBLINGS = 1024, 64  # rows of the tables
_ROLES = get_args(Role)


class GraphOptions(Params):
    """Options of the encoder `graph`."""

    layers: int = Field(3, ge=1, le=256, description="layers of the transformer")
    heads: int = Field(8, ge=1, le=1024, description="heads of its attention")
    max_distance: int = Field(50, ge=1, le=254, description="paths longer than this count as none; LoGAH has 250")
    features: Literal["log2", "buckets"] = Field("log2", description="how nodes are told; buckets: GHN-3's tables")
    kernel: int = Field(16, ge=1, le=1024, description="of buckets: the largest side of a kernel; CIFAR-10 has 11")
    classes: int = Field(1000, ge=1, le=10**6, description="of buckets: a number of classes that has its own row")


@encoders("graph", GraphOptions, paper="arXiv:2303.04143")
class GraphEncoder(nn.Module):
    """Codes (1, T, width), one a slot: the node that reads it, after layers of attention between all nodes.

        x = operation + shape + in-degree + out-degree + distance from the input
        codes = norm(Graphormer(x))[node of the slot]

    log2, our own: the operation by its hash, in a table of fixed size, so that none is unknown; the shape as logarithms
    through a small network; which one it is among nodes that nothing else tells apart (query, key and value). To each
    code the shape and role of its slot are added, since several may share a node.
    buckets, GHN-3's: 15 kinds of nodes, others are passed over; tables of sizes. Slots of one node have the same code,
    and so do those of nodes that nothing tells apart.

    A target without a graph is InvalidInput, and so is one of more than 20,000 nodes. Nothing else is asked for.

    Paper: Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, arXiv:2303.04143.
    """

    def __init__(self, options: GraphOptions, site: Site) -> None:
        super().__init__()
        width, own = site.width, options.features == "log2"
        if width % options.heads or width % 4:
            fact = f"codes of width {width} cannot be cut into {options.heads} heads, or four embeddings of a shape"
            raise InvalidInput(fact, "take a width that is a multiple of both")
        self.features = options.features
        self.operation = nn.Embedding(OPERATIONS if own else len(TYPES), width)
        self.shape = Sizes(width) if own else Buckets(width, options.kernel, options.classes)
        self.centrality = Centrality(width)
        self.graphormer = Graphormer(width, options.layers, options.heads, options.max_distance)
        self.norm = nn.LayerNorm(width)
        if own:
            self.sibling = nn.Embedding(SIBLINGS, width)
            self.role = nn.Embedding(len(_ROLES), width)
        embed_widely(self)

    def check(self, spec: TargetSpec) -> None:
        """InvalidInput for a target whose graph is not known, not sound or too large."""
        _graph_of(spec)

    def forward(self, condition: Condition, spec: TargetSpec) -> Tensor:
        """(1, T, width)."""
        graph = _graph_of(spec) if self.features == "log2" else as_ghn3(_graph_of(spec))
        nodes = self._features(graph) + self.centrality(graph)  # (nodes, width)
        nodes = self.norm(self.graphormer(nodes, graph))
        codes: Tensor = nodes[self._rows(graph.node_of)]  # (T, width)
        if self.features == "log2":
            roles = self._rows([_ROLES.index(slot.role) for slot in spec.slots])
            codes = codes + self.shape([slot.shape for slot in spec.slots]) + self.role(roles)
        return codes[None]

    def _features(self, graph: Graph) -> Tensor:
        if self.features == "log2":
            ids = [op_id(node.op, OPERATIONS) for node in graph.nodes]
            siblings = self._rows([min(int(number), SIBLINGS - 1) for number in graph.siblings])
            told = self.shape([node.shape for node in graph.nodes]) + self.sibling(siblings)
        else:
            ids, holds = [kind or 0 for kind in node_types(graph)], set(graph.node_of)
            told = self.shape([node.shape if i in holds else None for i, node in enumerate(graph.nodes)])
        features: Tensor = told + self.operation(self._rows(ids))
        return features

    def _rows(self, numbers: list[int] | tuple[int, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.operation.weight.device)


def _graph_of(spec: TargetSpec) -> Graph:
    if spec.graph is None:
        raise InvalidInput(
            "the target has no graph, and this generator goes by it", "give an example of its inputs, or its config"
        )
    if len(spec.graph.nodes) > MAX_NODES:
        raise InvalidInput(f"the target has {len(spec.graph.nodes):,} operations", f"a graph has at most {MAX_NODES:,}")
    if len(spec.graph.node_of) != len(spec.slots) or not spec.graph.sound:
        raise InvalidInput("the graph of the target does not fit its tensors", "capture it again from the module")
    return spec.graph
