"""Weight matching: reference values, permutations that are found again, functions that stay, shapes that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from paramsmith.errors import InvalidInput
from paramsmith.matching import (
    PermutationSpec,
    apply_permutation,
    identity_share,
    match_all,
    similarity,
    weight_matching,
)
from paramsmith.permutations import chain_spec, permutation_spec, resnet_spec

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = json.loads((Path(__file__).parent.parent / "oracles" / "weight_matching.json").read_text())["cases"]


def oracle(name: str) -> tuple[PermutationSpec, dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    case = next(case for case in CASES if case["name"] == name)
    axes = {tensor: tuple(names) for tensor, names in case["params"]["axes_to_perm"].items()}
    a, b = ({n: torch.tensor(v) for n, v in case["inputs"][key].items()} for key in ("params_a", "params_b"))
    return PermutationSpec(axes), a, b, case["output"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [case["name"] for case in CASES])
def test_reference_values(name: str, seed: int) -> None:
    """Whatever the order in which permutations are visited."""
    spec, a, b, told = oracle(name)
    found = weight_matching(spec, a, b, seed=seed)
    assert {key: p.tolist() for key, p in found.items()} == told["perm"]
    assert all(p.dtype == torch.int64 for p in found.values())
    if "permuted_b" in told:
        moved = apply_permutation(spec, found, b)
        assert {key: tensor.tolist() for key, tensor in moved.items()} == told["permuted_b"]
        assert all(torch.allclose((a[k] + moved[k]) / 2, torch.tensor(m)) for k, m in told["midpoint"].items())
    else:
        start = {"P_0": torch.arange(7)[None]}
        one, other = ({key: held[None] for key, held in tensors.items()} for tensors in (a, b))
        alike = similarity(spec, "P_0", one, other, start)[0]
        torch.testing.assert_close(alike, torch.tensor(told["cost_matrix"], dtype=torch.float64), atol=1e-12, rtol=0)
        assert alike.gather(1, found["P_0"][:, None]).sum().item() == pytest.approx(told["objective"], abs=1e-12)


class Block(nn.Module):
    """A residual block, named as torchvision names it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        changed = stride > 1 or inputs != width
        conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width)) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(made + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Two stages of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.layer1 = nn.Sequential(Block(6, 6, 1), Block(6, 6, 1))
        self.layer2 = nn.Sequential(Block(6, 8, 2), Block(8, 8, 1))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(made.mean((2, 3)))


class Named(nn.Module):
    """Convolutions and linear layers with names of their own, the channels flattened between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 5, 3, 1, 1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 7, 3, 2, 1), nn.BatchNorm2d(7)
        self.hidden, self.act, self.out = nn.Linear(7 * 9, 11), nn.PReLU(11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x))).flatten(1)
        return self.out(self.act(self.hidden(x)))


def vgg() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(2, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(54, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3))


def separable() -> nn.Module:
    """With a depthwise convolution, which keeps the permutation that it gets."""
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(6, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def perceptron() -> nn.Module:
    layers = [nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16)]
    return nn.Sequential(*layers, nn.PReLU(), nn.Linear(16, 4, bias=False))


NETWORKS = {
    "perceptron": (perceptron, (9,), 3),
    "vgg": (vgg, (2, 6, 6), 3),
    "separable": (separable, (2, 6, 6), 2),
    "named": (Named, (2, 6, 6), 3),
    "resnet": (ResNet, (2, 6, 6), 6),
}
each_network = pytest.mark.parametrize("kind", NETWORKS)


def trained_like(kind: str, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network, and weights and statistics that no unit shares with another."""
    torch.manual_seed(seed)
    module = NETWORKS[kind][0]().eval()
    held = {}
    for name, tensor in module.state_dict().items():
        held[name] = torch.rand(tensor.shape) + 0.5 if "running_var" in name else torch.randn(tensor.shape)
        held[name] = torch.tensor(7) if name.endswith("tracked") else held[name]
    return module, held


def drawn(spec: PermutationSpec, held: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    sizes = spec.sizes({name: tuple(tensor.shape) for name, tensor in held.items()})
    return {name: torch.randperm(size, generator=rng) for name, size in sizes.items()}


def shapes_of(held: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in held.items()}


@each_network
def test_permuting_leaves_the_function(kind: str) -> None:
    """Batch norms too: their statistics move along."""
    module, held = trained_like(kind, 0)
    spec = permutation_spec(shapes_of(held))
    assert set(spec.axes) == set(held)
    permutations = drawn(spec, held, 1)
    assert len(permutations) == NETWORKS[kind][2]
    moved = apply_permutation(spec, permutations, held)
    assert not all(torch.equal(moved[name], held[name]) for name in held)
    x = torch.randn(5, *NETWORKS[kind][1])
    before = functional_call(module.double(), {k: v.double() for k, v in held.items()}, x.double())
    after = functional_call(module, {k: v.double() for k, v in moved.items()}, x.double())
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


@each_network
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_is_found_again(kind: str, seed: int) -> None:
    """Exactly: what comes back has the bits of what was permuted. So it is where the order of names is another."""
    _, held = trained_like(kind, seed)
    spec = permutation_spec(dict(sorted(shapes_of(held).items())))
    moved = apply_permutation(spec, drawn(spec, held, seed), held)
    found = weight_matching(spec, held, moved, seed=seed)
    back = apply_permutation(spec, found, moved)
    assert all(torch.equal(back[name], held[name]) for name in held)
    assert identity_share(weight_matching(spec, held, back)) == 1.0


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10**6), st.booleans())
def test_any_perceptron_is_found_again(widths: list[int], seed: int, bf16: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    sizes = [6, *widths, 3]
    held = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        held[f"{number}.weight"] = torch.randn(outputs, inputs, generator=rng)
        held[f"{number}.bias"] = torch.randn(outputs, generator=rng)
    if bf16:
        held = {name: tensor.bfloat16() for name, tensor in held.items()}
    spec = chain_spec(shapes_of(held))
    moved = apply_permutation(spec, drawn(spec, held, seed), held)
    found = weight_matching(spec, held, moved)
    if len(widths) == 1:  # one assignment, which is the best of all
        assert all(torch.equal(apply_permutation(spec, found, moved)[name], held[name]) for name in held)
    for p in found.values():
        assert sorted(p.tolist()) == list(range(len(p)))

    def product(other: Mapping[str, Tensor]) -> float:
        return sum(float((held[name].double() * other[name].double()).sum()) for name in held)

    assert product(apply_permutation(spec, found, moved)) >= product(moved) - 1e-9


def test_many_at_once_as_one_by_one() -> None:
    networks = [trained_like("vgg", seed)[1] for seed in range(5)]
    spec = permutation_spec(shapes_of(networks[0]))
    stacked = {name: torch.stack([held[name] for held in networks]) for name in networks[0]}
    one = {name: tensor[:1] for name, tensor in stacked.items()}
    found = match_all(spec, one, stacked, seed=3)
    own = {name: tensor.roll(1, 0) for name, tensor in stacked.items()}  # a reference for each
    each = match_all(spec, own, stacked, seed=3)
    moved = apply_permutation(spec, found, stacked)
    for number, held in enumerate(networks):
        alone = weight_matching(spec, networks[0], held, seed=3)
        assert all(torch.equal(alone[name], found[name][number]) for name in found)
        other = weight_matching(spec, networks[number - 1], held, seed=3)
        assert all(torch.equal(other[name], each[name][number]) for name in each)
        single = apply_permutation(spec, alone, held)
        assert all(torch.equal(single[name], moved[name][number]) for name in held)
    assert identity_share({name: p[:1] for name, p in found.items()}) == 1.0


def test_the_size_of_weights_does_not_matter() -> None:
    """Nor do tensors of zeros, where nothing is better than leaving units where they are."""
    spec, a, b, told = oracle("mlp_2_hidden_recover")
    for factor in (1e-9, 1e12):
        one, other = ({n: v.double() * factor for n, v in held.items()} for held in (a, b))
        assert {key: p.tolist() for key, p in weight_matching(spec, one, other).items()} == told["perm"]
    zeros = {name: torch.zeros_like(tensor) for name, tensor in a.items()}
    assert identity_share(weight_matching(spec, a, zeros)) == 1.0


def test_statistics_move_along_and_are_not_compared() -> None:
    _, held = trained_like("vgg", 0)
    spec = permutation_spec(shapes_of(held))
    other = dict(held)
    other["1.running_var"] = held["1.running_var"].flip(0) * 1e6
    assert identity_share(weight_matching(spec, held, other)) == 1.0
    assert spec.axes["1.num_batches_tracked"] == ()


def wrong(told: str) -> pytest.RaisesExc[InvalidInput]:
    return pytest.raises(InvalidInput, match=told)


MLP = {"0.weight": (6, 4), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)}
CNN = {"0.weight": (6, 2, 3, 3), "1.weight": (6,), "1.bias": (6,), "3.weight": (3, 24)}


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({}, "no tensor is the weight"),
        (MLP | {"2.weight": (3, 7)}, r"2\.weight: the shape \[3, 7\] does not follow"),
        (MLP | {"2.weight": (3, 12)}, r"2\.weight: the shape \[3, 12\] does not follow"),
        (MLP | {"0.bias": (5,)}, r"0\.bias: has 5 entries beside a weight \[6, 4\]"),
        (MLP | {"1.weight": (5,)}, r"1\.weight: no layer has 5 outputs"),
        (MLP | {"1.scale\x1b": (6,)}, r"1\.scale\\x1b: is no part of"),
        (MLP | {"1.weight": ()}, r"1\.weight: is no part of"),
        (MLP | {"0.weight": (0, 4)}, r"0\.weight: is no part of"),
        ({"enc.weight": (4, 9), "dec.weight": (9, 4)}, "weight: it is open which layer comes before it"),
        ({"a.weight": (4, 4), "b.weight": (4, 4)}, "weight: it is open"),
        (MLP | {"norm.weight": (6,), "norm.bias": (6,), "4.weight": (6, 3)}, r"norm\.weight: it is open which layer"),
        (CNN, r"1\.weight: may be of a group norm"),
        (CNN | {"1.running_mean": (6,), "3.weight": (3, 25)}, r"3\.weight: the shape \[3, 25\] does not follow"),
        ({"layer1.0.conv1.weight": (4, 4, 3, 3), "tail.weight": (3,)}, r"tail\.weight: belongs to no part of a ResNet"),
        ({"conv1.weight": (4, 2, 3, 3), "layer1.0.conv1.weight": (4, 4, 3, 3)}, "has the same permutation on two axes"),
    ],
)
def test_shapes_that_do_not_chain(shapes: dict[str, tuple[int, ...]], told: str) -> None:
    with wrong(told) as refused:
        permutation_spec(shapes)
    assert "\n" not in refused.value.fact
    assert refused.value.hint


def test_grouped_convolutions_of_a_resnet_are_refused() -> None:
    shapes = shapes_of(ResNet().state_dict()) | {"layer2.1.conv2.weight": (8, 4, 3, 3)}
    with wrong(r"layer2\.1\.conv2\.weight: has 4 entries on axis 1, where 8 units"):
        resnet_spec(shapes)


def test_norms_of_channels_where_no_norm_has_groups() -> None:
    shapes = {name: shape for name, shape in shapes_of(ResNet().state_dict()).items() if "running" not in name}
    with wrong(r"bn1\.weight: may be of a group norm"):
        permutation_spec(shapes)
    assert permutation_spec(shapes, group_norms=False).axes["layer2.0.bn1.bias"] == ("layer2.0.conv1",)
    assert permutation_spec(CNN, group_norms=False).axes["1.bias"] == ("0",)


def test_a_norm_of_a_flattened_layer_has_several_entries_a_unit() -> None:
    shapes = {
        "0.weight": (6, 2, 3, 3),
        "2.weight": (24,),
        "2.bias": (24,),
        "2.running_mean": (24,),
        "3.weight": (3, 24),
    }
    spec = permutation_spec(shapes)
    assert spec.axes["2.weight"] == ("0",)
    order = torch.tensor([5, 0, 1, 2, 3, 4])
    moved = apply_permutation(spec, {"0": order}, {"2.weight": torch.arange(24.0)})
    assert moved["2.weight"].tolist() == [20, 21, 22, 23, *range(20)]


def test_networks_that_cannot_be_matched() -> None:
    spec, a, b, _ = oracle("mlp_2_hidden_recover")
    with wrong(r"layer1\.bias: is missing in the second network"):
        weight_matching(spec, a, {name: tensor for name, tensor in b.items() if name != "layer1.bias"})
    with wrong(r"layer1\.bias: has the shape \[5\] in the second network, not \[6\]"):
        weight_matching(spec, a, b | {"layer1.bias": torch.zeros(5)})
    for value in (math.nan, math.inf):
        with wrong(r"layer0\.bias: is not finite in the first network"):
            weight_matching(spec, a | {"layer0.bias": torch.full((6,), value)}, b)
    twice = PermutationSpec({"w": ("p", "p")})
    with wrong("w: has the same permutation on two axes"):
        weight_matching(twice, {"w": torch.eye(3)}, {"w": torch.eye(3)})
    with wrong("w: has 2 axes, and permutations are given for 1"):
        weight_matching(PermutationSpec({"w": ("p",)}), {"w": torch.eye(3)}, {"w": torch.eye(3)})


def test_permutations_that_cannot_be_applied() -> None:
    spec, _, b, _ = oracle("mlp_1_hidden_independent")
    right = torch.arange(7)
    with wrong("extra: is not among the tensors of the spec"):
        apply_permutation(spec, {"P_0": right}, b | {"extra": torch.zeros(3)})
    with wrong(r"layer0\.weight: has 7 entries on axis 0, where 6 units"):
        apply_permutation(spec, {"P_0": right[:6]}, b)
    for broken in (torch.zeros(7, dtype=torch.int64), right.float(), right + 1):
        with wrong("the permutation P_0 does not have every number"):
            apply_permutation(spec, {"P_0": broken}, b)
    part = {"layer1.weight": b["layer1.weight"]}  # a shard
    moved = apply_permutation(spec, {"P_0": right.flip(0)}, part)
    assert torch.equal(moved["layer1.weight"], part["layer1.weight"].flip(1))
