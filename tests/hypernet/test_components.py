"""Matrices as singular components: what comes back, what is told of the rest, and a token for each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paramsmith.errors import GenerateWarning
from paramsmith.hypernet.generator import Generator
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.components import as_components, components, composed, has_components
from paramsmith.hypernet.tokens.layoutfile import layout_from_json, layout_to_json
from paramsmith.hypernet.tokens.tokenizer import Tokenizer
from paramsmith.hypernet.zoos.index import Entry
from paramsmith.hypernet.zoos.writing import ZooWriter
from paramsmith.hypernet.zoos.zoo import Zoo

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.* networks")]


def slot(*shape: int) -> Slot:
    return Slot("w", shape, "F32", "matrix" if len(shape) == 2 else "kernel", 1)


def target(classes: int = 5) -> TargetSpec:
    layers = (
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 6),
        nn.Linear(6, 6),
        nn.Linear(6, classes),
    )
    return spec_of(nn.Sequential(*layers))


def networks(spec: TargetSpec, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {s.name: torch.randn(batch, *s.shape, generator=rng) * 0.3 for s in spec.slots}


def fitted(options: Mapping[str, object], spec: TargetSpec) -> Tokenizer:
    made = Tokenizer.of({"views": ["svd"], **options}, spec)
    made.fit(lambda: iter([(networks(spec, 3, seed), spec) for seed in range(3)]))
    return made


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    rank=st.one_of(st.none(), st.integers(1, 40)),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_what_a_full_rank_gives_back(shape: list[int], rank: int | None, scale: float, seed: int) -> None:
    """The best of its rank, which of a full one is the matrix."""
    one, rng = slot(*shape), torch.Generator().manual_seed(seed)
    held = torch.randn(2, *shape, generator=rng) * scale
    held[:, 0] = 0.0
    rows = components(held, one, rank)
    assert rows.shape == (2, *as_components(one, rank).shape)
    back = composed(rows, one)
    matrix = held.flatten(2).double()
    sizes = torch.linalg.svdvals(matrix)  # (2, k)
    lost = (sizes**2)[:, rows.shape[1] :].sum(1).sqrt()
    gap = (back.flatten(2) - matrix).flatten(1).norm(dim=1)
    assert bool((gap - lost <= 2e-6 * sizes[:, 0]).all())
    left = rows[..., : shape[0]]
    largest = left.gather(2, left.abs().argmax(2, keepdim=True))
    assert bool((largest >= 0).all())
    assert bool((rows[..., shape[0]].diff(dim=1) <= 1e-6 * scale**0.5).all())


def test_a_component_is_a_row() -> None:
    found = components(torch.tensor([[[0.0, -9.0], [4.0, 0.0]]]), slot(2, 2))
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0.0, 3.0, 0.0, -1.0], [0.0, 1.0, 2.0, 1.0, 0.0]]]))


@pytest.mark.parametrize("value", [torch.zeros(3, 4), torch.eye(3, 4) * 2, torch.ones(3, 4), torch.full((3, 4), 1e-30)])
def test_zeros_and_equal_singular_values(value: Tensor) -> None:
    """Components of rounding are zeros; those of equal size sum to what they came from."""
    rows = components(value[None], slot(3, 4))
    assert bool(rows.isfinite().all())
    torch.testing.assert_close(composed(rows, slot(3, 4))[0].float(), value, rtol=1e-5, atol=0)
    rank = int(torch.linalg.matrix_rank(value.double()))
    assert bool((rows[0, rank:] == 0).all())
    assert torch.equal(rows, components(value[None], slot(3, 4)))


def test_what_has_components() -> None:
    """All matrices but a head's, whose rows are classes."""
    spec = target()
    assert [s.name for s in spec.slots if has_components(s)] == ["0.weight", "3.weight", "4.weight"]
    assert as_components(slot(6, 4), 100).shape == (4, 11)
    assert as_components(slot(6, 4), 2).shape == (2, 11)
    head = next(s for s in spec.slots if s.class_axis is not None)
    assert as_components(head) is head


@pytest.mark.parametrize("layout", ["flat", "tensor", "row", "patch", "neuron"])
@pytest.mark.parametrize("normaliser", ["none", "pow2", "meanstd64", "coord", "center", "token"])
def test_a_network_comes_back(layout: str, normaliser: str) -> None:
    spec = target()
    tokenizer = fitted({"layout": layout, "normaliser": normaliser}, spec)
    held = networks(spec, 3, 9)
    back = tokenizer.tensors(tokenizer.tokens(held, spec), spec)
    assert back.keys() == held.keys()
    for name, tensor in held.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_token_is_a_component() -> None:
    spec = target()
    tokenizer = fitted({"normaliser": "none"}, spec)
    held = networks(spec, 2, 4)
    cut, tokens = tokenizer.layout(spec), tokenizer.tokens(held, spec)
    here = cut.span("3.weight")
    assert here.stop - here.start == 4
    row = tokens[0, here][0, :11].double()  # the first component of (6, 4)
    u, s, vh = torch.linalg.svd(held["3.weight"][0].double())
    torch.testing.assert_close(row[6] ** 2, s[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(row[:6, None] * row[None, 7:], u[:, :1] @ vh[:1], rtol=1e-4, atol=1e-5)
    again = layout_from_json(layout_to_json(cut))
    assert again.fingerprint == cut.fingerprint
    assert int(cut.places.slots[here.start]) == [s.name for s in spec.slots].index("3.weight")


def test_another_number_of_classes() -> None:
    spec, more = target(), target(7)
    tokenizer = fitted({"normaliser": "coord"}, spec)
    held = networks(more, 2)
    back = tokenizer.tensors(tokenizer.tokens(held, more), more, ["5.weight", "4.weight"])
    torch.testing.assert_close(back["5.weight"], held["5.weight"], rtol=1e-4, atol=1e-5)
    assert back["4.weight"].shape == (2, 6, 6)


def test_with_a_delta_and_other_views() -> None:
    spec = target()
    options = {"views": ["svd", "delta", "gauge"], "template": "mean", "normaliser": "center"}
    tokenizer = fitted(options, spec)
    held = networks(spec, 2, 5)
    back = tokenizer.tensors(tokenizer.tokens(held, spec), spec)
    torch.testing.assert_close(back["0.weight"], held["0.weight"], rtol=1e-4, atol=1e-5)


def test_what_a_rank_leaves_out_is_told() -> None:
    spec = target()
    held = torch.cat([networks(spec, 3, seed)["3.weight"] for seed in range(3)]).double()
    with pytest.warns(
        GenerateWarning, match=r"^2 components of each matrix leave out [\d.]+ % of their squares$"
    ) as told:
        tokenizer = fitted({"rank": 2}, spec)
    share = float(str(told[0].message).split()[7]) / 100
    every = lost = 0.0
    for name in ("0.weight", "3.weight", "4.weight"):
        held = torch.cat([networks(spec, 3, seed)[name] for seed in range(3)]).double()
        sizes = torch.linalg.svdvals(held.flatten(2)).square()
        every, lost = every + float(sizes.sum()), lost + float(sizes[:, 2:].sum())
    assert share == pytest.approx(lost / every, rel=1e-2)
    back = tokenizer.tensors(tokenizer.tokens(networks(spec), spec), spec)
    assert torch.linalg.matrix_rank(back["4.weight"], atol=1e-3).tolist() == [2, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted({"rank": 6}, spec)  # all there are


def test_gradients_pass_to_tokens() -> None:
    """What is drawn may be trained through the weights that it stands for."""
    spec = target()
    tokenizer = fitted({}, spec)
    tokens = tokenizer.tokens(networks(spec), spec).requires_grad_(True)
    tokenizer.tensors(tokens, spec)["0.weight"].square().sum().backward()
    assert tokens.grad is not None
    assert bool(tokens.grad.abs().sum() > 0)


def test_a_tokenizer_is_saved_with_its_view(tmp_path: Path) -> None:
    spec = target()
    tokenizer = fitted({"normaliser": "center"}, spec)
    other = Tokenizer.of({"views": ["svd"], "normaliser": "center"}, spec)
    other.load_state_dict(tokenizer.state_dict())
    held = networks(spec, 2)
    assert torch.equal(other.tokens(held, spec), tokenizer.tokens(held, spec))


@pytest.mark.parametrize("preset", ["nearest", "flow"])
def test_a_generator_of_components(tmp_path: Path, preset: str) -> None:
    spec = target()
    held = networks(spec, 5)
    with ZooWriter(tmp_path / "zoo") as writer:
        conditions = [{"vector": torch.tensor([float(i)])} for i in range(5)]
        writer.add(spec, held, [Entry(path="?") for _ in range(5)], conditions)
        writer.publish()
    zoo = Zoo.open(tmp_path / "zoo")
    made = Generator.build(preset, zoo.site, components=6, gauge=False)
    made.fit(zoo, {"steps": 2} if preset == "flow" else None)
    made.save(tmp_path / "gen")
    found = Generator.from_pretrained(tmp_path / "gen").sample({"vector": torch.tensor([3.0])})[0]
    assert all(found[name].shape == tensor.shape[1:] for name, tensor in held.items())
    if preset == "nearest":
        torch.testing.assert_close(found["3.weight"], held["3.weight"][3], rtol=1e-3, atol=1e-4)
