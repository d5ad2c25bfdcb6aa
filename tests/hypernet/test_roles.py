"""Roles, fan-ins, deviations and the head: of modules by the types of their layers, of checkpoints by their names."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.rolenames import natural, traits_by_name
from paramsmith.hypernet.targets.roles import traits_of

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = {
    "linear": nn.Linear(300, 400),
    "conv": nn.Conv2d(12, 24, (3, 5), groups=3),
    "transposed": nn.ConvTranspose2d(64, 96, 4, stride=2, groups=2),
    "bilinear": nn.Bilinear(30, 40, 50),
    "embedding": nn.Embedding(500, 64),
    "lstm": nn.LSTM(90, 70, num_layers=2, bidirectional=True),
    "cell": nn.GRUCell(90, 70),
    "attention": nn.MultiheadAttention(64, 4, add_bias_kv=True),
    "apart": nn.MultiheadAttention(64, 4, kdim=48, vdim=32),
}


@pytest.mark.parametrize("name", LAYERS)
def test_deviations_are_those_that_torch_draws(name: str) -> None:
    """The oracle is torch itself: the deviation of ten draws."""
    layer = LAYERS[name]
    traits = traits_of(layer, classes=0).by_name
    assert set(traits) == {own for own, _ in layer.named_parameters()}
    drawn: dict[str, list[Tensor]] = {own: [] for own in traits}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(10):
            for inner in layer.modules():
                if hasattr(inner, "reset_parameters"):
                    inner.reset_parameters()
            if isinstance(layer, nn.MultiheadAttention):
                layer._reset_parameters()
            for own, parameter in layer.named_parameters():
                drawn[own].append(parameter.detach().flatten().clone())
    for own, values in drawn.items():
        said, found = traits[own].std, float(torch.cat(values).std())
        assert said is not None
        # the spread of an estimate from n values is 1/sqrt(2 n) of it
        assert found == pytest.approx(said, rel=5 / math.sqrt(2 * 10 * values[0].numel()), abs=1e-12), own


@pytest.mark.parametrize(
    ("layer", "fan_ins"),
    [
        (nn.Linear(7, 3), {"weight": 7, "bias": 7}),
        (nn.Conv2d(12, 24, (3, 5), groups=3), {"weight": 60, "bias": 60}),
        (nn.Bilinear(3, 4, 5), {"weight": 12, "bias": 12}),
        (nn.LSTM(9, 7), {"weight_ih_l0": 9, "weight_hh_l0": 7, "bias_ih_l0": 9, "bias_hh_l0": 7}),
        (nn.Embedding(5, 6), {"weight": 1}),
        (nn.BatchNorm1d(6), {"weight": 1, "bias": 1}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_fan_in_is_how_many_inputs_are_summed(layer: nn.Module, fan_ins: dict[str, int]) -> None:
    assert {name: trait.fan_in for name, trait in traits_of(layer, classes=0).by_name.items()} == fan_ins


def test_fan_in_of_a_transposed_convolution_is_what_reaches_one_output() -> None:
    """Counted: with weights and inputs of one, an output far from the borders is the number of what it sums."""
    layer = nn.ConvTranspose2d(6, 4, 4, stride=2, groups=2, bias=False)
    nn.init.ones_(layer.weight)
    middle = layer(torch.ones(1, 6, 12, 12))[0, 0, 12, 12]
    assert traits_of(layer, classes=0).by_name["weight"].fan_in == int(middle)


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))


class Conv1D(nn.Module):
    """As transformers has it: (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 8))
        self.patch = nn.Conv2d(3, 8, 4)
        self.words = nn.Embedding(11, 8)
        self.wpe = nn.Embedding(16, 8)
        self.norm = RMSNorm()
        self.c_attn = Conv1D(24, 8)
        self.act = nn.PReLU()
        self.ls = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(8))})
        self.layer_norm = nn.LayerNorm((4, 8))
        self.head = nn.Linear(8, 5)
        self.late = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


def test_roles_of_modules() -> None:
    found = traits_of(Everything())
    roles = {name: trait.role for name, trait in found.by_name.items()}
    assert roles == {
        "cls_token": "position",
        "pos_embed": "position",
        "patch.weight": "kernel",
        "patch.bias": "bias",
        "words.weight": "embedding",
        "wpe.weight": "position",
        "norm.weight": "norm_scale",
        "c_attn.weight": "matrix",
        "c_attn.bias": "bias",
        "act.weight": "bias",
        "ls.gamma": "norm_scale",
        "layer_norm.weight": "norm_scale",
        "layer_norm.bias": "norm_shift",
        "head.weight": "head",
        "head.bias": "bias",
        "late.bias": "bias",
        "late.parametrizations.weight.original0": "norm_scale",
        "late.parametrizations.weight.original1": "matrix",
    }
    assert (found.head, found.how) == ("head.weight", "name")
    assert found.by_name["c_attn.weight"].fan_in == found.by_name["c_attn.bias"].fan_in == 8
    assert found.by_name["norm.weight"].std is None
    assert [name for name, trait in found.by_name.items() if trait.class_axis == 0] == ["head.weight", "head.bias"]


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def tied() -> nn.Module:
    module = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False))
    module[2].weight = module[0].weight
    return module


@pytest.mark.parametrize(
    ("module", "classes", "head", "how"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), None, "1.weight", "last"),
        (nn.ModuleDict({"fc": nn.Linear(8, 3), "extra": nn.Linear(8, 8)}), None, "fc.weight", "name"),
        (nn.ModuleDict({"fc": nn.Linear(8, 3), "extra": nn.Linear(8, 8)}), 8, "extra.weight", "classes"),
        (nn.ModuleDict({"fc": nn.Linear(8, 3), "extra": nn.Linear(8, 8)}), 0, None, "classes"),
        (nn.Sequential(block(), block()), None, None, "none"),  # equal blocks, and nothing after them
        (nn.Sequential(block(), block(), nn.Linear(8, 8)), None, "2.weight", "last"),
        (nn.ModuleDict({"a": nn.Linear(8, 8), "pooler": nn.Linear(8, 8)}), None, None, "none"),
        (nn.Sequential(nn.Linear(4, 8), nn.Conv1d(2, 2, 3)), None, None, "none"),  # what comes last is no matrix
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), None, None, "none"),
        (
            nn.ModuleDict({"features": nn.Conv2d(3, 8, 3), "classifier": nn.Conv2d(8, 5, 1)}),
            None,
            "classifier.weight",
            "name",
        ),
        (tied(), None, None, "none"),
    ],
)
def test_where_the_head_is(module: nn.Module, classes: int | None, head: str | None, how: str) -> None:
    found = traits_of(module, classes)
    assert (found.head, found.how) == (head, how)
    assert [name for name, trait in found.by_name.items() if trait.class_axis is not None][:1] == (
        [head] if head else []
    )


def test_no_layer_with_so_many_classes() -> None:
    with pytest.raises(InvalidInput, match="no layer of the target has 7 outputs"):
        traits_of(nn.Linear(4, 3), 7)


def test_what_is_looked_up_anywhere_is_an_embedding() -> None:
    module = nn.ModuleDict({"out": nn.Linear(8, 9, bias=False), "look": nn.Embedding(9, 8)})
    module["look"].weight = module["out"].weight
    assert {name: trait.role for name, trait in traits_of(module).by_name.items()} == {"out.weight": "embedding"}


def test_a_config_says_how_weights_are_drawn() -> None:
    module = Everything()
    module.config = type("Config", (), {"initializer_range": 0.05})()  # type: ignore[assignment]
    traits = traits_of(module).by_name
    assert {traits[name].std for name in ("patch.weight", "words.weight", "head.weight", "pos_embed")} == {0.05}
    assert traits["head.bias"].std == 0.0
    assert traits["norm.weight"].std is None


NAMED = {
    "bert.embeddings.word_embeddings.weight": ((17, 16), "embedding", 1),
    "bert.embeddings.position_embeddings.weight": ((32, 16), "position", 1),
    "bert.embeddings.token_type_embeddings.weight": ((2, 16), "embedding", 1),
    "bert.embeddings.LayerNorm.gamma": ((16,), "norm_scale", 1),
    "bert.embeddings.LayerNorm.beta": ((16,), "norm_shift", 1),
    "h.0.attn.c_attn.weight": ((16, 48), "matrix", 16),
    "h.0.attn.c_attn.bias": ((48,), "bias", 16),
    "layers.0.mlp.up_proj.weight": ((32, 16), "matrix", 16),
    "layers.0.input_layernorm.weight": ((16,), "norm_scale", 1),
    "layers.0.mlp.experts.gate_up_proj": ((4, 64, 16), "kernel", 16),
    "features.0.weight": ((8, 3, 3, 3), "kernel", 27),
    "features.0.bias": ((8,), "bias", 27),
    "features.1.weight": ((8,), "norm_scale", 1),
    "features.1.bias": ((8,), "norm_shift", 1),
    "features.2.act.weight": ((1,), "bias", 1),
    "cls_token": ((1, 1, 16), "position", 1),
    "relative_position_bias_table": ((49, 2), "position", 1),
    "self_attn.in_proj_weight": ((48, 16), "matrix", 16),
    "self_attn.in_proj_bias": ((48,), "bias", 16),
    "pos_proj.weight": ((16, 16), "matrix", 16),
    "pos_proj.bias": ((16,), "bias", 16),
    "class_embed.weight": ((5, 16), "matrix", 16),
    "class_embed.bias": ((5,), "bias", 16),
    "patch_embed.proj.weight": ((16, 3, 4, 4), "kernel", 48),
    "visual.ls1.gamma": ((16,), "norm_scale", 1),
    "logit_scale": ((), "norm_scale", 1),
    "conv.weight_g": ((8, 1), "norm_scale", 1),
    "conv.weight_v": ((8, 4), "matrix", 4),
    "mixer.dt_bias": ((8,), "bias", 1),
}


def test_roles_by_name_and_shape() -> None:
    found, how = traits_by_name({name: shape for name, (shape, _, _) in NAMED.items()})
    assert how == "none"
    assert {name: (trait.role, trait.fan_in) for name, trait in found.items()} == {
        name: (role, fan_in) for name, (_, role, fan_in) in NAMED.items()
    }
    assert found["features.0.weight"].std == pytest.approx(1 / math.sqrt(81))
    assert found["bert.embeddings.word_embeddings.weight"].std == 1.0


@pytest.mark.parametrize(
    ("shapes", "head"),
    [
        ({"net.0.weight": (8, 4), "net.10.weight": (3, 8), "net.2.weight": (8, 8)}, "net.10.weight"),
        ({"fc1.weight": (8, 4), "fc2.weight": (8, 8), "fc3.weight": (3, 8)}, "fc3.weight"),
        ({"alpha.weight": (8, 4), "zeta.weight": (3, 8)}, None),  # the order of a file says nothing
        ({"zeta.weight": (8, 4), "classifier.weight": (3, 8)}, "classifier.weight"),
        ({"lm_head.weight": (17, 8), "layers.0.mlp.up.weight": (8, 8)}, "lm_head.weight"),
    ],
)
def test_the_head_by_name(shapes: dict[str, tuple[int, ...]], head: str | None) -> None:
    found, _ = traits_by_name(shapes)
    assert [name for name, trait in found.items() if trait.role == "head"] == ([head] if head else [])


def test_types_and_names_agree_on_a_plain_transformer() -> None:
    """Names see what types see, where names are the customary ones."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module = nn.ModuleDict(
        {"embed": nn.Embedding(9, 8), "encoder": nn.TransformerEncoder(layer, 2), "head": nn.Linear(8, 3)}
    )
    by_type = traits_of(module).by_name
    by_name, _ = traits_by_name({name: tuple(p.shape) for name, p in module.named_parameters()})
    untold = {name: replace(trait, std=None) for name, trait in by_name.items()}
    assert untold == {name: replace(trait, std=None) for name, trait in by_type.items()}


def test_names_are_sorted_as_people_count() -> None:
    assert sorted(["h.10.a", "h.9.b", "h.9.a", "a"], key=natural) == ["a", "h.9.a", "h.9.b", "h.10.a"]


def test_a_great_many_blocks_are_looked_at_once_each() -> None:
    """Quadratic work on hostile names would take hours here."""
    shapes = {f"layers.{i}.fc.weight": (4, 4) for i in range(5_000)}
    found, how = traits_by_name(shapes)
    assert how == "none"
    assert len(found) == 5_000
