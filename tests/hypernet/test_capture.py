"""Graphs of modules: what becomes a node, what is passed over, which node holds which tensor; nothing is changed."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramsmith.errors import GenerateWarning, InvalidInput
from paramsmith.hypernet.targets.capture import capture, chain
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.graph import Graph
from paramsmith.hypernet.targets.target import TargetSpec

pytestmark = pytest.mark.usefixtures("one_thread")


def graph_of(module: nn.Module, *inputs: Tensor, **keywords: Tensor) -> Graph:
    """Captured by export, or the test fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = capture(module, keywords or inputs, spec_of(module))
    assert graph.source == "export"
    assert graph.sound
    return graph


def told(graph: Graph) -> list[str]:
    """Each node as `operation(nodes before it)`."""
    before: list[list[int]] = [[] for _ in graph.nodes]
    for start, stop in graph.edges:
        before[stop].append(start)
    return [
        f"{node.op.removeprefix('aten.')}({','.join(map(str, each))})"
        for node, each in zip(graph.nodes, before, strict=True)
    ]


def held(module: nn.Module, graph: Graph) -> dict[str, int]:
    return {slot.name: node for slot, node in zip(spec_of(module).slots, graph.node_of, strict=True)}


class Runs(nn.Module):
    """A module with some layers and a forward made of a function of them and the input."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)

    def forward(self, *inputs: Tensor, **keywords: Tensor) -> object:
        return self.run(self, *inputs, **keywords)


class Block(nn.Module):
    """A layer of a transformer, with torch's fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), 0.1, self.training)
        return y


class Vit(nn.Module):
    """A vision transformer with a class token and a table of positions."""

    def __init__(self, width: int = 16, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return y


IMAGES = torch.zeros(2, 3, 16, 16)


def test_a_weight_is_a_node_and_its_bias_the_next() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    graph = graph_of(module, torch.zeros(2, 3, 4))
    assert told(graph) == ["input()", "linear(0)", "bias(1)", "relu(2)", "linear(3)"]
    assert [node.shape for node in graph.nodes] == [(3, 4), (8, 12), (8,), (8,), (3, 8)]
    assert held(module, graph) == {"1.weight": 1, "1.bias": 2, "3.weight": 4}


def test_convolutions_norms_and_residuals() -> None:
    module = Runs(
        lambda m, x: m.f(F.max_pool2d(F.relu(m.b(m.c(x)) + x), 2).mean((2, 3))),
        c=nn.Conv2d(3, 3, 3, padding=1),
        b=nn.BatchNorm2d(3),
        f=nn.Linear(3, 2),
    )
    graph = graph_of(module, IMAGES)
    assert told(graph) == [
        *("input()", "conv2d(0)", "bias(1)", "batch_norm(2)", "add(0,3)", "relu(4)", "max_pool2d(5)", "mean(6)"),
        *("linear(7)", "bias(8)"),
    ]
    assert held(module, graph)["b.weight"] == held(module, graph)["b.bias"] == 3


def test_a_vision_transformer() -> None:
    module = Vit(layers=1)
    graph = graph_of(module, IMAGES)
    assert told(graph) == [
        *("input()", "conv2d(0)", "bias(1)", "cat(2)", "add(3)"),
        *(
            "layer_norm(4)",
            "linear(5)",
            "bias(6)",
            "scaled_dot_product_attention(7)",
            "linear(8)",
            "bias(9)",
            "add(4,10)",
        ),
        *("layer_norm(11)", "linear(12)", "bias(13)", "gelu(14)", "linear(15)", "bias(16)", "add(11,17)"),
        *("layer_norm(18)", "linear(19)", "bias(20)"),
    ]
    assert held(module, graph)["token"] == 3
    assert held(module, graph)["positions"] == 4


@pytest.mark.parametrize("training", [True, False])
def test_where_it_is_and_what_mode_it_is_in_change_nothing(training: bool) -> None:
    expected = graph_of(Vit(), IMAGES)
    module = Vit().train(training)
    assert graph_of(module, IMAGES.repeat(3, 1, 1, 1)) == expected
    assert graph_of(module.requires_grad_(training), IMAGES.to("meta")) == expected
    assert graph_of(module.to("meta"), IMAGES) == expected


def test_names_change_nothing() -> None:
    class Renamed(Vit):
        def __init__(self) -> None:
            super().__init__()
            self.aa, self.zz = self.head, self.patches
            self.bias, self.weight = self.token, self.positions
            del self.head, self.patches, self.token, self.positions

        def __getattr__(self, name: str) -> Tensor | nn.Module:
            names = {"head": "aa", "patches": "zz", "token": "bias", "positions": "weight"}
            held = {**self._modules, **self._parameters}
            return super().__getattr__(name if name in held else names.get(name, name))

    module, other = Vit(), Renamed()
    graph, renamed = graph_of(module, IMAGES), graph_of(other, IMAGES)
    assert (renamed.nodes, renamed.edges) == (graph.nodes, graph.edges)
    assert held(other, renamed)["aa.weight"] == held(module, graph)["head.weight"]
    assert held(other, renamed)["bias"] == held(module, graph)["token"]


def test_the_module_is_left_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
    tensors = dict(module.state_dict())
    before, random = copy.deepcopy(tensors), torch.random.get_rng_state()
    graph_of(module, torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(tensor.data_ptr() == tensors[name].data_ptr() for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_parameter_is_found_through_views_and_scales() -> None:
    module = Runs(lambda m, x: F.linear(x, (m.w.t() * 0.5).contiguous().to(x.dtype)), w=torch.ones(4, 3))
    assert told(graph_of(module, torch.zeros(2, 4))) == ["input()", "linear(0)"]


def test_one_tensor_read_twice_belongs_to_the_first_reader() -> None:
    def run(m: Runs, ids: Tensor) -> Tensor:
        return F.linear(m.e(ids), m.e.weight)

    module = Runs(run, e=nn.Embedding(7, 4))
    graph = graph_of(module, torch.zeros(2, 5, dtype=torch.int64))
    assert told(graph) == ["input()", "embedding(0)", "linear(1)"]
    assert graph.node_of == (1,)
    assert graph.nodes[2].shape == (7, 4)


def test_tied_under_two_names() -> None:
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    module[1].weight = module[0].weight
    graph = graph_of(module, torch.zeros(2, 5, dtype=torch.int64))
    assert graph.node_of == (1,)
    spec = spec_of(module)
    assert capture(module, (torch.zeros(2, 5, dtype=torch.int64),), spec).node_of == (1,)


def test_a_layer_used_twice() -> None:
    module = Runs(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(4, 4))
    graph = graph_of(module, torch.zeros(2, 4))
    assert told(graph) == ["input()", "linear(0)", "bias(1)", "tanh(2)", "linear(3)", "bias(4)"]
    assert graph.node_of == (1, 2)


def test_what_nothing_reads_stands_alone() -> None:
    module = Runs(lambda m, x: m.a(x), a=nn.Linear(4, 4), b=nn.Linear(2, 3))
    graph = graph_of(module, torch.zeros(2, 4))
    assert told(graph)[-2:] == ["unused()", "unused()"]
    assert [graph.nodes[held(module, graph)[f"b.{name}"]].shape for name in ("weight", "bias")] == [(3, 2), (3,)]


def test_what_leads_nowhere_is_left_out_but_not_with_its_tensors() -> None:
    def run(m: Runs, x: Tensor) -> Tensor:
        torch.tanh(m.b(torch.sin(x)))
        return m.a(x)  # type: ignore[no-any-return]

    module = Runs(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert told(graph_of(module, torch.zeros(2, 4))) == [
        *("input()", "sin(0)", "linear(1)", "bias(2)", "linear(0)", "bias(4)"),
    ]


def test_constants_are_no_nodes() -> None:
    def run(m: Runs, x: Tensor) -> Tensor:
        mask = torch.full((4, 4), -1.0).triu(1)
        y = 2 * (m.a(x) + mask) - torch.arange(4)
        return torch.cat([y, torch.zeros_like(x)]) if x.sum().ndim == 0 else y

    assert told(graph_of(Runs(run, a=nn.Linear(4, 4)), torch.zeros(4, 4))) == ["input()", "linear(0)", "bias(1)"]


def test_operations_of_two_operands_count() -> None:
    module = Runs(lambda m, x: (m.a(x) * torch.sigmoid(x), x + x), a=nn.Linear(4, 4))
    assert told(graph_of(module, torch.zeros(2, 4))) == [
        *("input()", "linear(0)", "bias(1)", "sigmoid(0)", "mul(2,3)", "add(0)"),
    ]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: F.relu(m.a(x)) + x,
        lambda m, x: F.relu_(m.a(x)).add_(x),
        lambda m, x: (h := F.relu(m.a(x)), F.relu(h, inplace=True), h.mul_(2), h.view(-1).add_(x.view(-1)), h)[-1],
    ],
)
def test_in_place_is_the_same(run: Callable[..., Tensor]) -> None:
    nodes = told(graph_of(Runs(run, a=nn.Linear(4, 4)), torch.zeros(2, 4)))
    assert nodes[:4] == ["input()", "linear(0)", "bias(1)", "relu(2)"]
    assert nodes[-1].startswith("add(0,")


def test_writing_into_a_part_mixes_what_was_there_with_what_comes() -> None:
    def run(m: Runs, x: Tensor) -> Tensor:
        h = m.a(x)
        h[:, 0] = torch.sin(x[:, 0])
        return torch.cos(h)

    nodes = told(graph_of(Runs(run, a=nn.Linear(4, 4)), torch.zeros(2, 4)))
    assert nodes == ["input()", "linear(0)", "bias(1)", "sin(0)", "cos(2,3)"]


def test_shapes_may_decide() -> None:
    module = Runs(lambda m, x: m.a(x) if x.shape[1] == 4 and len(x) > 1 else x, a=nn.Linear(4, 4))
    assert told(graph_of(module, torch.zeros(2, 4))) == ["input()", "linear(0)", "bias(1)"]


def test_inside_no_grad_and_autocast_are_the_same_nodes() -> None:
    def run(m: Runs, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.sin(m.b(x))
        with torch.autocast("cpu", torch.bfloat16):
            return m.a(x)  # type: ignore[no-any-return]

    module = Runs(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert told(graph_of(module, torch.zeros(2, 4))) == [
        *("input()", "linear(0)", "bias(1)", "sin(2)", "linear(3)", "bias(4)"),
    ]


def test_inputs_by_name_and_outputs_of_any_kind() -> None:
    module = Runs(lambda m, x, y: {"a": m.a(x), "rest": [None, (m.b(y), 3)]}, a=nn.Linear(4, 4), b=nn.Linear(3, 3))
    assert told(graph_of(module, y=torch.zeros(2, 3), x=torch.zeros(2, 4))) == [
        *("input()", "input()", "linear(1)", "bias(2)", "linear(0)", "bias(4)"),
    ]


def test_an_input_that_nothing_uses_is_no_node() -> None:
    module = Runs(lambda m, x, y: m.a(x), a=nn.Linear(4, 4))
    assert told(graph_of(module, torch.zeros(2, 4), torch.zeros(2)))[0:2] == ["input()", "linear(0)"]


def test_attention_of_torch_whether_fused_or_not() -> None:
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    trained = graph_of(module, torch.zeros(2, 5, 8))
    assert "scaled_dot_product_attention(3)" not in told(trained)[:3]
    assert told(trained)[1:4] == ["linear(0)", "bias(1)", "scaled_dot_product_attention(2)"]
    with torch.no_grad():
        assert graph_of(module.eval().requires_grad_(False), torch.zeros(2, 5, 8)) == trained


def test_parts_of_one_weight_read_apart() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    module = Runs(lambda m, x, y: m.attention(x, y, y)[0], attention=attention)
    graph = graph_of(module, torch.zeros(2, 5, 8), torch.zeros(2, 3, 8))
    assert [node.split("(")[0] for node in told(graph)].count("linear") == 3
    assert len(set(graph.node_of)) == 4


def test_recurrent_layers_hold_all_their_tensors() -> None:
    graph = graph_of(nn.LSTM(4, 8, 2), torch.zeros(5, 2, 4))
    assert [node.op for node in graph.nodes] == ["input", *["aten.lstm"] * 4, *["bias"] * 4]
    assert sorted(graph.node_of) == list(range(1, 9))


def test_gpt2_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0, n_positions=32
    )
    with torch.device("meta"):
        module = transformers.GPT2LMHeadModel(config)
    graph = graph_of(module, input_ids=torch.zeros(1, 8, dtype=torch.int64))
    nodes, places = told(graph), held(module, graph)
    assert nodes[:4] == ["input()", "embedding(0)", "embedding()", "add(1,2)"]
    assert nodes[-1].startswith("linear(")  # the head, tied to the first embedding
    assert graph.nodes[-1].shape == graph.nodes[places["transformer.wte.weight"]].shape == (50, 16)
    assert sum(node.op == "aten.scaled_dot_product_attention" for node in graph.nodes) == 2
    assert len(set(graph.node_of)) == len(graph.node_of) - 5  # five norms, whose two tensors share a node


def test_a_large_vision_transformer_without_memory() -> None:
    with torch.device("meta"):
        module = Vit(1024, 16, 24)
    assert sum(parameter.numel() for parameter in module.parameters()) > 300_000_000
    graph = graph_of(module, IMAGES)
    assert len(graph.nodes) == 8 + 14 * 24
    assert len(graph.edges) == 7 + 16 * 24
    assert graph.from_input.max() == 9 + 2 * 24  # along the residuals, two sums a layer


def branches(m: Runs, x: Tensor) -> Tensor:
    return m.a(x) if x.sum() > 0 else m.b(x)  # type: ignore[no-any-return]


def test_control_flow_over_data_gives_a_chain_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    module = Runs(branches, a=nn.Linear(4, 4), b=nn.LayerNorm(4))
    with pytest.warns(
        GenerateWarning, match=r"chain of its tensors.*line \d+: return m.a\(x\) if x.sum\(\) > 0"
    ) as seen:
        graph = capture(module, (torch.zeros(2, 4),), spec_of(module))
    assert "\n" not in str(seen[0].message)
    assert graph == chain(spec_of(module))
    assert graph.source == "chain"
    assert capfd.readouterr() == ("", "")


def leaves(m: Runs, x: Tensor) -> Tensor:
    sys.exit(7)


def test_a_network_that_exits_gives_a_chain_too() -> None:
    module = Runs(leaves, a=nn.Linear(4, 4))
    with pytest.warns(GenerateWarning, match="chain of its tensors"):
        assert capture(module, (torch.zeros(2, 4),), spec_of(module)).source == "chain"


def test_where_export_fails_fx_gives_layers(capfd: pytest.CaptureFixture[str]) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.d, self.w = nn.Sequential(nn.GELU(), nn.Dropout()), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(F.relu(self.a(x)))
            h += x
            y: Tensor = self.d(h.view(h.size(0), -1)) + self.w
            return y

    module = Layers()
    with pytest.warns(GenerateWarning, match=r"coarser; torch.export says: .*\[2, 5\] X \[4, 4\]"):
        graph = capture(module, (torch.zeros(2, 5),), spec_of(module))
    assert capfd.readouterr() == ("", "")
    assert graph.source == "fx"
    assert told(graph) == [
        *("input()", "linear(0)", "bias(1)", "relu(2)", "batch_norm(3)", "add(0,4)", "gelu(5)", "add(6)"),
    ]
    assert held(module, graph) == {"w": 7, "a.weight": 1, "a.bias": 2, "b.weight": 4, "b.bias": 4}


def test_fx_takes_defaults_for_what_is_not_given() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y: Tensor = self.a(x)
            return y if mask is None else y + mask

    module = Optional()
    inputs: Mapping[str, Tensor] = {"x": torch.zeros(2, 5)}
    with pytest.warns(GenerateWarning):
        assert told(capture(module, inputs, spec_of(module))) == ["input()", "linear(0)", "bias(1)"]


def test_the_chain_of_a_checkpoint() -> None:
    spec = spec_of(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    )
    graph = chain(spec)
    assert told(graph) == [
        *("input()", "conv2d(0)", "bias(1)", "batch_norm(2)", "embedding(3)", "layer_norm(4)", "linear(5)", "bias(6)"),
    ]
    assert graph.node_of == (1, 2, 3, 3, 4, 5, 5, 6, 7)


def test_too_many_operations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramsmith.hypernet.targets.capture.MAX_NODES", 2)
    with pytest.raises(InvalidInput, match="3 operations"):
        capture(nn.Linear(2, 2), (torch.zeros(1, 2),), spec_of(nn.Linear(2, 2)))


def test_a_spec_whose_names_are_copies_finds_its_tensors() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    spec = spec_of(module)
    other = [
        slot
        if slot.name != "0.weight"
        else type(slot)("1.weight", slot.shape, "F32", "matrix", 3, copies=("0.weight",))
        for slot in spec.slots
    ]
    assert (
        capture(module, (torch.zeros(1, 3),), TargetSpec(tuple(other))).node_of
        == graph_of(module, torch.zeros(1, 3)).node_of
    )


def test_control_characters_of_a_target_do_not_reach_the_terminal() -> None:
    def run(m: Runs, x: Tensor) -> Tensor:
        raise ValueError("\x1b[31mred")

    module = Runs(run, a=nn.Linear(4, 4))
    with pytest.warns(GenerateWarning) as seen:
        capture(module, (torch.zeros(2, 4),), spec_of(module))
    assert not re.search(r"[\x00-\x1f]", str(seen[0].message))
