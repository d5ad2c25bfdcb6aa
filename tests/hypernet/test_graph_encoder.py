"""The graph encoder: GHN-3's sizes, its formula, what codes depend on and what they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.encoders.graph import GraphEncoder, GraphOptions
from paramsmith.hypernet.encoders.graphormer import Graphormer
from paramsmith.hypernet.encoders.node_features import SIZES, TYPES, Buckets, node_types, sizes
from paramsmith.hypernet.protocols import Site
from paramsmith.hypernet.seeding import seeded
from paramsmith.hypernet.targets.capture import capture, chain
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.graph import Graph, Node
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.parts import encoders

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLE = json.loads((Path(__file__).parent.parent / "oracles/ghn_logah_parameter_counts.json").read_text())["computed"]
GHN3 = {"T": (64, 3, 8), "S": (128, 5, 16), "L": (256, 12, 16), "XL": (384, 24, 16)}


def built(width: int = 16, seed: int = 0, **options: object) -> GraphEncoder:
    with seeded(seed):
        return GraphEncoder(GraphOptions.model_validate({"layers": 2, "heads": 2, **options}), Site(width))


class Attention(nn.Module):
    """Three matrices that nothing but their order tells apart, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        y: Tensor = self.head(self.norm(F.gelu(mixed) + x))
        return y


@pytest.fixture(scope="module")
def spec() -> TargetSpec:
    module = Attention()
    found = spec_of(module)
    return replace(found, graph=capture(module, (torch.zeros(2, 5, 8),), found))


def code(spec: TargetSpec, codes: Tensor, name: str) -> Tensor:
    return codes[0, [slot.name for slot in spec.slots].index(name)]


@pytest.mark.parametrize("size", GHN3)
@pytest.mark.parametrize(("settings", "kernel", "classes"), [("imagenet1000", 16, 1000), ("cifar10_s11", 11, 10)])
def test_as_many_parameters_as_ghn3(size: str, settings: str, kernel: int, classes: int) -> None:
    width, layers, heads = GHN3[size]
    options = GraphOptions(layers=layers, heads=heads, features="buckets", kernel=kernel, classes=classes)
    with torch.device("meta"):
        encoder = GraphEncoder(options, Site(width))
    parts = {
        "op_embed": encoder.operation,
        "shape_embed": encoder.shape,
        "gnn": encoder.graphormer,
        "centrality": encoder.centrality,
        "final_ln": encoder.norm,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert counts == {name: ORACLE[f"GHN-3-{size}_{settings}"][name] for name in parts}
    assert sum(counts.values()) == sum(p.numel() for p in encoder.parameters())


def test_longer_paths_cost_no_parameters() -> None:
    def count(most: int) -> int:
        return sum(p.numel() for p in built(max_distance=most).parameters())

    assert count(250) == count(50)


@pytest.mark.parametrize("features", ["log2", "buckets"])
def test_one_code_a_slot(spec: TargetSpec, features: str) -> None:
    codes = built(features=features)({}, spec)
    assert codes.shape == (1, len(spec.slots), 16)
    assert torch.isfinite(codes).all()


def test_slots_that_share_a_node_are_told_apart_by_ours_only(spec: TargetSpec) -> None:
    for features, same in (("log2", False), ("buckets", True)):
        codes = built(features=features)({}, spec)
        assert torch.equal(code(spec, codes, "norm.weight"), code(spec, codes, "norm.bias")) is same


def test_query_key_and_value_are_told_apart_by_ours_only(spec: TargetSpec) -> None:
    for features, same in (("log2", False), ("buckets", True)):
        codes = built(features=features)({}, spec)
        for one, other in ("qk", "qv", "kv"):
            a, b = (code(spec, codes, f"{name}.weight") for name in (one, other))
            assert torch.allclose(a, b, atol=1e-6) is same


def pairwise(graphormer: Graphormer, nodes: Tensor, graph: Graph) -> Tensor:
    """The same by the book: an embedding for each pair of nodes, logits and softmax written out."""
    paths = torch.from_numpy(np.where(graph.distances > graphormer.max_distance, 0, graph.distances)).long()
    table = graphormer.edges.table.weight
    bias = graphormer.edges.layers(torch.cat([table[paths + 2], table[paths.T + 2]], -1))  # (n, n, heads)
    for layer in graphormer.layers:
        read = F.layer_norm(nodes, nodes.shape[1:], layer.before_attention.weight, layer.before_attention.bias)
        query, key, value = (read @ layer.read.weight.T).chunk(3, -1)
        told = []
        for head in range(layer.heads):
            part = slice(head * query.shape[1] // layer.heads, (head + 1) * query.shape[1] // layer.heads)
            logits = query[:, part] @ key[:, part].T / (part.stop - part.start) ** 0.5 + bias[..., head]
            told.append(torch.softmax(logits, -1) @ value[:, part])
        nodes = nodes + layer.write(torch.cat(told, -1))
        nodes = nodes + layer.mlp(layer.before_mlp(nodes))
    return nodes


@pytest.mark.parametrize("most", [1, 3, 50])
def test_the_layers_are_those_of_the_paper(spec: TargetSpec, most: int) -> None:
    assert spec.graph is not None
    with seeded(1):
        graphormer, nodes = Graphormer(12, 2, 3, most), torch.randn(len(spec.graph.nodes), 12)
    expected = pairwise(graphormer, nodes, spec.graph)
    assert torch.allclose(graphormer(nodes, spec.graph), expected, atol=1e-5)


def with_graph(spec: TargetSpec, **changes: object) -> TargetSpec:
    assert spec.graph is not None
    return replace(spec, graph=replace(spec.graph, **changes))  # type: ignore[arg-type]


def test_every_code_depends_on_the_whole_graph(spec: TargetSpec) -> None:
    assert spec.graph is not None
    encoder, graph = built(), spec.graph
    before = encoder({}, spec)
    gelu = [node.op for node in graph.nodes].index("aten.gelu")  # holds no slot
    other = tuple(Node("aten.relu", node.shape) if i == gelu else node for i, node in enumerate(graph.nodes))
    for changed in (with_graph(spec, nodes=other), with_graph(spec, edges=(*graph.edges, (0, len(graph.nodes) - 1)))):
        assert ((encoder({}, changed) - before).abs().amax(-1) > 1e-5).all()


def test_names_do_not_matter(spec: TargetSpec) -> None:
    renamed = replace(spec, slots=tuple(replace(slot, name=f"x{i}") for i, slot in enumerate(spec.slots)))
    encoder = built()
    assert torch.equal(encoder({}, spec), encoder({}, renamed))


@pytest.mark.parametrize("features", ["log2", "buckets"])
def test_one_encoder_for_targets_of_any_size(spec: TargetSpec, features: str) -> None:
    other = spec_of(nn.Sequential(nn.Linear(9000, 7), nn.Conv3d(2, 3, 3)))
    other = replace(other, graph=chain(other))
    encoder = built(features=features)
    before = encoder({}, spec)
    assert encoder({}, other).shape == (1, 4, 16)
    assert torch.equal(encoder({}, spec), before)


def test_a_long_deep_and_crowded_graph_is_clipped() -> None:
    count = 1200  # more steps from the input, and more edges at a node, than there are rows for
    edges = [(k, k + 1) for k in range(count - 1)] + [(k, count - 1) for k in range(0, 200, 2)]
    graph = Graph((Node("input"), *[Node("mine.op", (1,) * 7)] * (count - 1)), tuple(edges), (5, count - 1))
    slots = tuple(Slot(name, (1,) * 7, "F32", "kernel", 1) for name in "ab")
    with torch.no_grad():
        codes = built(8, layers=1, max_distance=254)({}, TargetSpec(slots, graph=graph))
    assert torch.isfinite(codes).all()


@pytest.mark.parametrize("features", ["log2", "buckets"])
def test_everything_is_trained(spec: TargetSpec, features: str) -> None:
    encoder = built(features=features)
    encoder({}, spec).square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().any()]


def test_the_same_codes_whatever_the_state_of_the_random_generator(spec: TargetSpec) -> None:
    encoder = built()
    state = torch.random.get_rng_state()
    first = encoder({}, spec)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(encoder({}, spec), first)


def test_in_other_types(spec: TargetSpec) -> None:
    encoder = built()
    exact = encoder.double()({}, spec)
    assert exact.dtype == torch.float64
    assert torch.allclose(encoder.bfloat16()({}, spec).double(), exact, atol=0.2)


def test_embeddings_start_as_in_the_paper() -> None:
    encoder = built(64)
    assert encoder.operation.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert encoder.graphormer.edges.table.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_found_by_its_name() -> None:
    part = encoders.find("graph")
    assert (part.make, part.params) == (GraphEncoder, GraphOptions)


def test_targets_that_are_refused(spec: TargetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = built()
    for wrong, fact in (
        (replace(spec, graph=None), "no graph"),
        (replace(spec, slots=spec.slots[1:]), "does not fit"),
        (with_graph(spec, edges=((3, 2),)), "does not fit"),
    ):
        for call in (encoder.check, lambda wrong: encoder({}, wrong)):
            with pytest.raises(InvalidInput, match=fact):
                call(wrong)
    monkeypatch.setattr("paramsmith.hypernet.encoders.graph.MAX_NODES", 4)
    with pytest.raises(InvalidInput, match="operations"):
        encoder.check(spec)


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (6, 2), (16, 32)])
def test_widths_that_cannot_be_cut_are_refused(width: int, heads: int) -> None:
    with pytest.raises(InvalidInput, match=f"width {width} cannot be cut into {heads} heads"):
        GraphEncoder(GraphOptions(heads=heads), Site(width))


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((64, 3, 7, 7), (64, 3, 7, 7)),
        ((1000, 512), (1000, 512, 1, 1)),
        ((10,), (8, 1, 1, 1)),  # 8 and 16 are rows, 10 is none
        ((12, 5, 2, 18), (8, 8, 3, 16)),
        ((20_000, 2), (8192, 1, 1, 1)),
        ((1, 197, 768), (1, 768, 14, 14)),
        ((30, 20, 3), (32, 16, 3, 1)),
    ],
)
def test_shapes_take_the_nearest_bucket(shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    buckets = Buckets(4, kernel=16, classes=1000)
    a, b, c, d = buckets.rows(shape)
    assert (buckets.channels[a], buckets.channels[b], buckets.sides[c], buckets.sides[d]) == rows
    assert buckets.rows(None) == (len(buckets.channels),) * 2 + (len(buckets.sides),) * 2


def test_sizes_tell_every_shape_apart() -> None:
    shapes = [(), (4,), (4, 1), (4, 1, 1), (8, 4), (4, 8), (4, 8, 3, 3), (4, 8, 3, 5), (4, 8, 1, 3, 5), (0, 3)]
    told = {sizes(shape) for shape in shapes}
    assert len(told) == len(shapes)
    assert {len(each) for each in told} == {SIZES}


def test_kinds_of_nodes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.bn, self.gate, self.scale = nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))
            self.table, self.ln, self.head = nn.Parameter(torch.zeros(1, 16, 4)), nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = F.relu(self.bn(self.deep(x))) + x
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[..., None, None]
            x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 2).flatten(2).transpose(1, 2) + self.table
            x = F.scaled_dot_product_attention(x, x, x) * self.scale
            y: Tensor = self.head(self.ln(x).mean(1))
            return y

    module = Net()
    graph = capture(module, (torch.zeros(2, 1, 8, 4),), spec_of(module))
    kinds = [
        (node.op.removeprefix("aten."), None if k is None else TYPES[k])
        for node, k in zip(graph.nodes, node_types(graph), strict=True)
    ]
    assert kinds == [
        *(("input", "input"), ("conv2d", "conv"), ("bias", "bias"), ("conv2d", "sep_conv"), ("bias", "bias")),
        *(("batch_norm", "bn"), ("relu", None), ("add", "sum"), ("mean", "glob_avg"), ("linear", "conv")),
        *(("bias", "bias"), ("sigmoid", None), ("mul", "cse"), ("max_pool2d", "max_pool"), ("avg_pool2d", "avg_pool")),
        *(("cat", "concat"), ("add", "pos_enc"), ("scaled_dot_product_attention", "msa"), ("mul", "bias")),
        *(("layer_norm", "ln"), ("mean", "glob_avg"), ("linear", "conv"), ("bias", "bias")),
    ]
