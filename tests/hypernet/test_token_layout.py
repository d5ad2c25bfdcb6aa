"""Targets cut into tokens: every number has one place, and comes back from it as it was."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens import layout as layouts
from paramsmith.hypernet.tokens.cutting import natural_width
from paramsmith.hypernet.tokens.layout import FEATURES, Layout, layout_of
from paramsmith.hypernet.tokens.layoutfile import layout_from_json, layout_to_json
from paramsmith.hypernet.tokens.segments import PADDING

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("flat", "tensor", "row", "patch", "neuron")
sizes = st.sampled_from([1, 2, 3, 5, 7, 8, 11])


@st.composite
def specs(draw: st.DrawFn) -> TargetSpec:
    """Layers whose sizes agree or not, with or without biases, a head, and tensors of any other shape."""
    slots: list[Slot] = []
    width = draw(sizes)
    for number in range(draw(st.integers(0, 3))):
        before, width = (width if draw(st.booleans()) else draw(sizes)), draw(sizes)
        kernel = draw(st.sampled_from([(), (), (3,), (3, 3)]))
        role = "kernel" if kernel else "matrix"
        slots.append(Slot(f"{number}.weight", (width, before, *kernel), "F32", role, before))
        if draw(st.booleans()):
            slots.append(Slot(f"{number}.bias", (width,), "F32", "bias", before))
        if draw(st.booleans()):
            slots.append(Slot(f"{number}.norm.weight", (width,), "F32", "norm_scale", 1))
    if draw(st.booleans()):
        classes, axis = draw(sizes), draw(st.sampled_from([0, 0, 1]))
        shape = (classes, width) if axis == 0 else (width, classes)
        slots.append(Slot("head.weight", shape, "F32", "head", width, None, axis))
        slots.append(Slot("head.bias", (classes,), "F32", "bias", width, None, 0))
    shapes = st.lists(st.lists(sizes, max_size=4).map(tuple), min_size=0 if slots else 1, max_size=3)
    slots += [Slot(f"other.{i}", shape, "F32", "bias", 1) for i, shape in enumerate(draw(shapes))]
    return TargetSpec(tuple(slots))


@st.composite
def cut_targets(draw: st.DrawFn) -> Layout:
    spec, kind = draw(specs()), draw(st.sampled_from(KINDS))
    names = draw(st.lists(st.sampled_from([s.name for s in spec.slots]), min_size=1, unique=True) | st.none())
    tile, own = (draw(st.integers(1, 4)), draw(st.integers(1, 6))), draw(st.integers(0, 2))
    width = draw(st.none() | st.integers(1, 40).map(lambda n: n + own)) if kind != "patch" else None
    return layout_of(spec, kind, width, names, tile, own)


def network(spec: TargetSpec, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {slot.name: torch.randn(batch, *slot.shape, generator=rng) for slot in spec.slots}


def linear(classes: int = 5) -> TargetSpec:
    return spec_of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes)))


@given(layout=cut_targets())
@settings(max_examples=80)
def test_every_number_has_one_place_and_every_place_one_segment(layout: Layout) -> None:
    size = layout.width - layout.own
    taken = torch.zeros(len(layout) * size, dtype=torch.int64)
    read = {slot.name: torch.zeros(prod(slot.shape), dtype=torch.int64) for slot in layout.slots}
    for segment in layout.cut.segments:
        extents = [extent for extent, _, _ in segment.axes]
        taken.as_strided(extents, [stride for _, _, stride in segment.axes], segment.at).add_(1)
        if segment.slot != PADDING:
            name = layout.spec.slots[segment.slot].name
            read[name].as_strided(extents, [step for _, step, _ in segment.axes], segment.start).add_(1)
    assert bool((taken == 1).all())
    assert all(bool((count == 1).all()) for count in read.values())


@given(layout=cut_targets())
@settings(max_examples=80)
def test_a_network_comes_back_as_it_was(layout: Layout) -> None:
    held = network(layout.spec)
    tokens = layout.tokens(held)
    assert tokens.shape == (2, len(layout), layout.width)
    back = layout.tensors(tokens)
    assert list(back) == list(layout.names)
    assert all(torch.equal(back[name], held[name]) for name in back)
    mask = layout.places.mask
    assert mask.shape == tokens.shape[1:]
    assert int(mask.sum()) == sum(prod(slot.shape) for slot in layout.slots) + layout.own * len(layout)
    assert not tokens[:, ~mask].any(), "padding is 0"
    one = layout.tensors(tokens, layout.names[-1:])
    assert torch.equal(one[layout.names[-1]], held[layout.names[-1]])


@given(layout=cut_targets())
@settings(max_examples=40)
def test_places_are_of_every_token_and_told_as_they_are(layout: Layout) -> None:
    places = layout.places
    assert places.features.shape == (len(layout), FEATURES)
    assert bool(places.features.isfinite().all())
    assert float(places.features.abs().max()) <= 2
    marked = {name: torch.full((1, *layout._shapes[name]), i + 1.0) for i, name in enumerate(layout.names)}
    tokens = layout.tokens(marked)[0, :, : layout.width - layout.own]
    numbers = {slot.name: number for number, slot in enumerate(layout.spec.slots)}
    for token, slot in zip(tokens, places.slots.tolist(), strict=True):
        inside = {numbers[layout.names[int(mark) - 1]] for mark in token[token > 0].tolist()}
        weights = {number for number in inside if len(layout.spec.slots[number].shape) > 1}
        if slot >= 0:
            assert slot in inside or weights <= {slot}, "of its weight, or a bias that had no more room there"
        else:
            assert len(inside) > 1 or layout.kind == "neuron"


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_half_precision_and_views_of_memory_come_back(kind: Any) -> None:
    spec = linear()
    layout, held = layout_of(spec, kind), network(spec, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        typed = {name: tensor.to(dtype) for name, tensor in held.items()}
        back = layout.tensors(layout.tokens(typed, dtype=torch.float64))
        assert all(torch.equal(back[name].to(dtype), typed[name]) for name in typed)
    turned = {name: tensor.mT.contiguous().mT if tensor.dim() > 2 else tensor for name, tensor in held.items()}
    assert torch.equal(layout.tokens(turned), layout.tokens(held))
    alike = {name: tensor[:1].expand(4, *tensor.shape[1:]) for name, tensor in held.items()}
    assert torch.equal(layout.tokens(alike), layout.tokens({n: t[:1] for n, t in held.items()}).expand(4, -1, -1))
    tokens = layout.tokens(held)
    apart = torch.stack([tokens, tokens], 1).flatten(0, 1)[::2]
    assert torch.equal(layout.tensors(apart)["0.weight"], held["0.weight"])


def test_a_row_is_a_token_with_its_bias_and_a_class_is_a_row() -> None:
    spec = linear()
    layout, held = layout_of(spec, "row"), network(spec)
    assert (len(layout), layout.width) == (6 + 5, 7)
    tokens = layout.tokens(held)
    assert torch.equal(tokens[:, :6, :4], held["0.weight"])
    assert torch.equal(tokens[:, :6, 4], held["0.bias"])
    assert torch.equal(tokens[:, 6:], torch.cat([held["2.weight"], held["2.bias"][..., None]], 2))
    assert layout.places.classes.tolist() == [-1] * 6 + [0, 1, 2, 3, 4]
    assert layout.places.slots.tolist() == [0] * 6 + [2] * 5


def test_long_rows_are_split_and_a_bias_goes_along_only_where_there_is_room() -> None:
    spec = linear()
    layout = layout_of(spec, "row", 3)
    assert layout.places.classes.tolist()[-15:] == sorted([0, 1, 2, 3, 4] * 3), "a class keeps its bias"
    assert layout.places.slots.tolist()[:12] == [0] * 12
    without = layout_of(spec, "row", 2)
    assert without.places.slots.tolist()[:15] == [0] * 12 + [1] * 3, "rows of 4 fill their tokens"
    assert natural_width(spec_of(nn.Linear(2000, 3)), "row", ["weight", "bias"]) == 512


def test_a_kernel_is_cut_by_output_channels() -> None:
    spec = spec_of(nn.Conv2d(3, 4, 2))
    layout, held = layout_of(spec, "row"), network(spec)
    assert torch.equal(layout.tokens(held)[..., :12], held["weight"].flatten(2))
    assert torch.equal(layout.tokens(held)[..., 12], held["bias"])


def test_patches_are_tiles_and_low_rank_factors_keep_their_rank_whole() -> None:
    slots = (Slot("a.lora_A.weight", (4, 10), "F32", "matrix", 10), Slot("a.lora_B.weight", (9, 4), "F32", "matrix", 4))
    spec = TargetSpec(slots)
    layout, held = layout_of(spec, "patch", tile=(4, 5)), network(spec)
    tokens = layout.tokens(held)
    assert (len(layout), layout.width) == (2 + 2, 20)
    assert torch.equal(tokens[:, 1].view(2, 4, 5), held["a.lora_A.weight"][:, :, 5:])
    assert torch.equal(tokens[:, 2].view(2, 4, 5), held["a.lora_B.weight"].mT[:, :, :5])
    assert layout_of(spec, "patch").width == 8 * 128


def test_a_neuron_is_its_row_its_numbers_and_its_column() -> None:
    spec = spec_of(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.Linear(5, 3)))
    layout, held = layout_of(spec, "neuron"), network(spec)
    first = [
        held["0.weight"],
        *(held[name][..., None] for name in ("0.bias", "1.weight", "1.bias")),
        held["2.weight"].mT,
    ]
    second = [held["2.bias"][..., None], held["3.weight"].mT]
    tokens = layout.tokens(held)
    assert torch.equal(tokens[:, :6], torch.cat(first, 2))
    assert torch.equal(tokens[:, 6:11, :4], torch.cat(second, 2))
    assert torch.equal(tokens[:, 11:, 0], held["3.bias"])
    assert layout.places.slots.tolist() == [-1] * 11 + [7] * 3
    order = torch.tensor([3, 1, 5, 0, 2, 4])  # the units of the first layer in another order
    moved = {name: t[:, order] if name[0] in "01" else t for name, t in held.items()} | {
        "2.weight": held["2.weight"][..., order]
    }
    assert torch.equal(layout.tokens(moved)[:, :6], tokens[:, :6][:, order])


@pytest.mark.parametrize("kind", ["row", "neuron"])
@pytest.mark.parametrize("width", [0, 3, 6])
def test_nothing_tells_one_class_from_another(kind: Any, width: int) -> None:
    for classes in (5, 7):
        spec = linear(5).with_classes(classes)
        places = layout_of(spec, kind, width).places
        rows = [places.features[places.classes == number] for number in range(classes)]
        assert all(len(row) for row in rows)
        assert all(torch.equal(row, rows[0]) for row in rows)
    same = [layout_of(linear().with_classes(k), "row", 7).places.features[-1] for k in (2, 9)]
    assert torch.equal(same[0], same[1]), "nor how many there are"


def test_rows_and_depth_are_told_apart() -> None:
    features = layout_of(spec_of(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))), "row", 3).places.features
    assert len(features[:12].unique(dim=0)) == 12


@given(layout=cut_targets(), classes=sizes)
@settings(max_examples=40)
def test_another_number_of_classes_changes_the_heads_tokens_alone(layout: Layout, classes: int) -> None:
    if all(slot.class_axis is None for slot in layout.spec.slots):
        with pytest.raises(InvalidInput, match="head"):
            layout.with_classes(classes)
        return
    other = layout.with_classes(classes)
    again = layout_of(
        layout.spec.with_classes(classes), layout.kind, layout.width, layout.names, layout.tile, layout.own
    )
    assert other.fingerprint == again.fingerprint
    held = network(other.spec)
    assert all(torch.equal(t, held[name]) for name, t in other.tensors(other.tokens(held)).items())
    if layout.kind == "row":
        plain = [one.places.features[one.places.classes < 0] for one in (layout, other)]
        assert torch.equal(plain[0], plain[1])
        assert sorted(set(other.places.classes.tolist()) - {-1}) in ([], list(range(classes)))


@given(layout=cut_targets())
@settings(max_examples=40)
def test_a_layout_survives_json(layout: Layout) -> None:
    again = layout_from_json(layout_to_json(layout))
    assert again.fingerprint == layout.fingerprint
    held = network(layout.spec)
    assert torch.equal(again.tokens(held), layout.tokens(held))


def test_the_fingerprint_is_of_what_decides_where_numbers_stand() -> None:
    spec = linear()
    known = "a526d2a4ab7b0ccaa9212f7152de7114973251e5212c66ae2dcfaf4a0b92d99f"
    assert layout_of(spec, "row").fingerprint == known, "another process, another machine: the same"
    different = [
        layout_of(spec, "row"),
        layout_of(spec, "row", 8),
        layout_of(spec, "flat"),
        layout_of(linear(6), "row"),
    ]
    different += [layout_of(spec, "row", names=["0.weight"]), layout_of(spec, "row", 8, own=1)]
    assert len({layout.fingerprint for layout in different}) == len(different)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "rows"}, "one of the kinds"),
        ({"width": -1}, "of a width"),
        ({"width": True}, "of a width"),
        ({"width": 10**30}, "of a width"),
        ({"width": 10**9}, "too many for a target of 65 numbers"),
        ({"tile": [10**6, 10**6], "kind": "patch", "width": 10**12}, "too many"),
        ({"tile": [0, 5]}, "in tiles of"),
        ({"own": 10**9, "width": 10**9 + 1}, "too many"),
        ({"own": 7}, "no room"),
        ({"names": ["0.weight", "x\x1b"]}, r"x\\x1b: is no tensor"),
        ({"names": []}, "no tensor"),
        ({"names": {"0.weight": 1}}, "list of names"),
        ({"target": []}, "of a target"),
        ({"segments": []}, "made of"),
    ],
)
def test_a_hostile_layout_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        layout_from_json({**layout_to_json(layout_of(linear(), "row")), **change})


def test_a_target_that_is_too_large_for_its_layout_is_refused_before_memory_is_taken() -> None:
    huge = TargetSpec((Slot("w", (10**6, 10**6), "F32", "matrix", 1),))
    for kind, width in (("flat", 1), ("row", 0), ("tensor", 512), ("flat", 10**12)):
        with pytest.raises(InvalidInput, match="too many"):
            layout_of(huge, kind, width)  # type: ignore[arg-type]
    assert layouts.MAX_TOKENS * FEATURES < 2**28


def test_what_is_wrong_with_a_network_is_said_of_the_tensor() -> None:
    spec = linear()
    layout, held = layout_of(spec, "row"), network(spec)
    with pytest.raises(InvalidInput, match=r"tensor 2\.bias is missing"):
        layout.tokens({name: tensor for name, tensor in held.items() if name != "2.bias"})
    with pytest.raises(InvalidInput, match=r"tensor 2\.weight is \[2, 6, 5\], where \[2, 5, 6\] is wanted"):
        layout.tokens({**held, "2.weight": held["2.weight"].mT})
    with pytest.raises(InvalidInput, match="tokens are"):
        layout.tensors(torch.zeros(2, 3, layout.width))
    with pytest.raises(InvalidInput, match="stands in no token"):
        layout.tensors(layout.tokens(held), ["3.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_both_ways(kind: Any) -> None:
    spec = linear()
    layout = layout_of(spec, kind, tile=(4, 5))
    held = {name: tensor.requires_grad_() for name, tensor in network(spec, 1).items()}
    factors = dict.fromkeys(held, 2.0)
    layout.tokens(held, factors).square().sum().backward()
    assert all(tensor.grad is not None and torch.allclose(tensor.grad, 8 * tensor) for tensor in held.values())
    tokens = layout.tokens({name: t.detach() for name, t in held.items()}).requires_grad_()
    sum(t.square().sum() for t in layout.tensors(tokens).values()).backward()  # type: ignore[union-attr]
    assert tokens.grad is not None
    assert torch.allclose(tokens.grad, 2 * tokens)


def test_without_memory_places_have_shapes_alone() -> None:
    layout = layout_of(linear(), "row")
    with torch.device("meta"):
        assert layout.places.mask.is_meta
        assert layout.places.mask.shape == (11, 7)
    assert not layout.places.mask.is_meta


@example(vectors=[3, 3])
@given(vectors=st.lists(sizes, min_size=1, max_size=4))
def test_a_stream_runs_across_tensors(vectors: list[int]) -> None:
    spec = TargetSpec(tuple(Slot(str(i), (n,), "F32", "bias", 1) for i, n in enumerate(vectors)))
    layout, held = layout_of(spec, "flat", 4), network(spec, 1)
    stream = torch.cat([held[slot.name][0] for slot in spec.slots])
    assert torch.equal(layout.tokens(held).flatten()[: len(stream)], stream)
