"""Networks to tokens of a size near 1, and back: what normalisers, views and policies promise."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paramsmith.errors import InvalidInput
from paramsmith.hypernet.moments import Moments
from paramsmith.hypernet.skeleton import _no_memory
from paramsmith.hypernet.targets.describe import spec_of
from paramsmith.hypernet.targets.target import Slot, TargetSpec
from paramsmith.hypernet.tokens.normalise import Kind, power_of_two
from paramsmith.hypernet.tokens.tokenizer import Tokenizer
from paramsmith.hypernet.tokens.views import canonical_pair, lora_pairs, without_class_mean

pytestmark = pytest.mark.usefixtures("one_thread")

NORMALISERS = get_args(Kind)
LAYOUTS = ("flat", "tensor", "row", "patch", "neuron")
Network = Mapping[str, Tensor]


def target(classes: int = 5) -> TargetSpec:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, classes)
    return spec_of(nn.Sequential(*layers))


def networks(spec: TargetSpec, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Of sizes as trained ones have, norm scales around 1, a few numbers exactly 0."""
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for number, slot in enumerate(spec.slots):
        tensor = torch.randn(batch, *slot.shape, generator=rng) * 0.3 / (number + 1) + (slot.role == "norm_scale")
        made[slot.name] = torch.where(torch.rand(tensor.shape, generator=rng) < 0.05, 0.0, tensor)
    return made


def fitted(options: Mapping[str, Any], spec: TargetSpec | None = None, *zoo: tuple[Network, TargetSpec]) -> Tokenizer:
    spec = spec or target()
    made = Tokenizer.of(options, spec)
    made.fit(lambda: iter(zoo or [(networks(spec, 3, seed), spec) for seed in range(3)]))
    return made


def same(one: Network, other: Network) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_comes_back(layout: str, normaliser: str) -> None:
    tokenizer, spec = fitted({"layout": layout, "normaliser": normaliser}), target()
    held = {**networks(spec, 2, 9), "2.weight": tokenizer.template.get("2.weight").expand(2, 1)}
    tokens = tokenizer.tokens(held, spec)
    assert tokens.dtype == torch.float32
    assert tokens.shape[1:] == tokenizer.layout(spec).places.mask.shape
    back = tokenizer.tensors(tokens, spec)
    assert list(back) == [slot.name for slot in spec.slots]
    assert all(torch.allclose(back[name], held[name], rtol=0, atol=3e-6) for name in held)
    if normaliser in ("none", "pow2"):
        assert same(back, held)
    wide = tokenizer.tokens(held, spec, torch.float64)
    if normaliser not in ("coord", "token"):
        assert same(tokenizer.tensors(wide, spec), held), "every bit, zeros too"


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.integers(-20, 20),
)
@settings(max_examples=100)
def test_powers_of_two_give_every_bit_back(values: list[float], dtype: torch.dtype, scale: int) -> None:
    spec = TargetSpec((Slot("w", (2, 3), "F32", "matrix", 3),))
    held = torch.tensor(values).clamp(-6e4, 6e4).to(dtype).view(1, 2, 3)
    tokenizer = Tokenizer.of({}, spec)
    tokenizer.normaliser.scale.fill_(2.0**scale)
    exact = held.float().abs().clamp_min(2.0**-100) == held.float().abs()  # or 0: below, fp32 itself runs out of bits
    back = tokenizer.tensors(tokenizer.tokens({"w": held}, spec), spec)["w"]
    assert torch.equal(back[exact], held.float()[exact])
    wide = tokenizer.tokens({"w": held}, spec, torch.float64)
    assert torch.equal(tokenizer.tensors(wide, spec)["w"], held.float())


@given(mean=st.integers(-3, 3), std=st.integers(-12, 3), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_a_mean_that_is_subtracted_in_fp64_costs_no_bit(mean: int, std: int, seed: int) -> None:
    spec = TargetSpec((Slot("w", (7, 11), "F32", "matrix", 11),))
    rng = torch.Generator().manual_seed(seed)
    held = torch.randn(3, 7, 11, generator=rng) * 2.0**std + mean * 1.1
    held[0, 0] = 0.0
    for normaliser in ("meanstd64", "center"):
        tokenizer = fitted({"normaliser": normaliser}, spec, ({"w": held}, spec))
        assert torch.equal(tokenizer.tensors(tokenizer.tokens({"w": held}, spec, torch.float64), spec)["w"], held)


@pytest.mark.parametrize("normaliser", [n for n in NORMALISERS if n != "none"])
def test_tokens_are_of_a_size_near_1(normaliser: str) -> None:
    spec = target()
    tokenizer = fitted({"normaliser": normaliser})
    for name, tensor in tokenizer.layout(spec).tensors(tokenizer.tokens(networks(spec), spec)).items():
        size = float(tensor.square().mean().sqrt())
        assert 0.4 < size < 1.8, (name, size)


def test_statistics_are_those_of_all_numbers_whatever_the_batches() -> None:
    spec = target()
    held = networks(spec, 12)
    held["0.weight"] += torch.arange(12.0).view(-1, 1, 1, 1, 1)  # networks differ more than their numbers
    cuts = [{name: t[a:b] for name, t in held.items()} for a, b in ((0, 1), (1, 6), (6, 12))]
    for normaliser in NORMALISERS:
        whole = fitted({"normaliser": normaliser}, spec, (held, spec)).normaliser.state_dict()
        parts = fitted({"normaliser": normaliser}, spec, *((cut, spec) for cut in cuts)).normaliser.state_dict()
        assert whole.keys() == parts.keys()
        assert all(torch.allclose(whole[name], parts[name], rtol=1e-12, atol=1e-15) for name in whole)
    wide = held["0.weight"].double()
    found = fitted({"normaliser": "coord"}, spec, (held, spec)).normaliser
    first = slice(0, wide[0].numel())
    assert torch.allclose(found.mean[first], wide.mean(0).flatten())
    assert torch.allclose(found.scale[first], wide.std(0, correction=0).flatten())
    of_tensor = fitted({"normaliser": "meanstd64"}, spec, (held, spec)).normaliser
    assert float(of_tensor.mean[0]) == pytest.approx(float(wide.mean()))
    assert float(of_tensor.scale[0]) == power_of_two(float(wide.std(correction=0)))


def test_moments_of_many_small_differences_around_a_large_mean_are_kept() -> None:
    held = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-6 + 1e6
    found = Moments.of(held[:1], [0], keep=True)
    for number in held[1:]:
        found = found.with_more(Moments.of(number[None], [0], keep=True))
    assert float(found.squares / found.count) == pytest.approx(float(held.var(correction=0)), rel=1e-3)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_what_never_varies_stays_as_it_is(normaliser: str) -> None:
    spec = target()
    constants = {slot.name: torch.full((2, *slot.shape), 0.1 * number) for number, slot in enumerate(spec.slots)}
    tokenizer = fitted({"normaliser": normaliser}, spec, (constants, spec), (constants, spec))
    tokens = tokenizer.tokens(constants, spec)
    assert float(tokens.abs().max()) < (6 if normaliser == "token" else 2), "a bias may be far from its row"
    back = tokenizer.tensors(tokens, spec)
    assert all(torch.allclose(back[name], constants[name], atol=1e-7) for name in back)
    moved = {name: tensor + 0.01 for name, tensor in constants.items()}
    assert float(tokenizer.tokens(moved, spec).abs().max()) < 6, "and what does after all is not blown up"


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("views", [(), ("gauge", "delta")])
def test_classes_are_alike_and_any_number_of_them_will_do(normaliser: str, views: tuple[str, ...]) -> None:
    zoo = [(networks(target(k), 2, k), target(k)) for k in (3, 5, 4)]
    tokenizer = fitted({"normaliser": normaliser, "views": views}, target(), *zoo)
    order = torch.tensor([2, 0, 3, 1])
    held = networks(target(4))
    moved = {n: t[:, order] if t.shape[1] == 4 and n.startswith("5.") else t for n, t in held.items()}
    layout = tokenizer.layout(target(4))
    rows = (layout.places.classes >= 0).nonzero()[:, 0]
    assert len(rows) == 4
    one, other = tokenizer.tokens(held, target(4)), tokenizer.tokens(moved, target(4))
    assert torch.equal(one[:, rows][:, order], other[:, rows])
    for classes in (1, 2, 9):
        own = networks(target(classes), 2)
        back = tokenizer.tensors(tokenizer.tokens(own, target(classes)), target(classes))
        assert back["5.weight"].shape == (2, classes, 6)
        assert torch.allclose(back["0.weight"], own["0.weight"], atol=1e-6)


def test_another_target_is_refused() -> None:
    tokenizer = fitted({})
    for other in (spec_of(nn.Linear(4, 5)), spec_of(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 5)))):
        with pytest.raises(InvalidInput, match="another target"):
            tokenizer.layout(other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_told_by_its_tensor(bad: float) -> None:
    spec = target()
    held = networks(spec)
    held["4.weight"][1, 2, 3] = bad
    with pytest.raises(InvalidInput, match=r"tensor 4\.weight holds values that are not finite"):
        Tokenizer.of({}, spec).fit(lambda: iter([(held, spec)]))
    with pytest.raises(InvalidInput, match=r"tensor 4\.weight holds"):
        fitted({}).tokens(held, spec)
    held["2.weight"][0] = bad  # of the template
    with pytest.raises(InvalidInput, match=r"tensor 2\.weight holds"):
        Tokenizer.of({}, spec).fit(lambda: iter([(held, spec)]))


def test_what_a_zoo_lacks_is_said() -> None:
    spec, held = target(), networks(target())
    with pytest.raises(InvalidInput, match="no networks"):
        Tokenizer.of({}, spec).fit(lambda: iter(()))
    for name in ("2.weight", "4.bias"):
        less = {other: tensor for other, tensor in held.items() if other != name}
        with pytest.raises(InvalidInput, match=f"tensor {name}.*is missing"):
            Tokenizer.of({}, spec).fit(lambda less=less: iter([(less, spec)]))  # type: ignore[misc]


def test_policies_say_what_is_made() -> None:
    spec = target()
    rules = [{"policy": "constant", "role": "norm_scale", "value": 1.5}, {"policy": "template", "name": "4."}]
    tokenizer = fitted({"policies": rules, "template": "mean"})
    held = networks(spec, 2, 9)
    layout = tokenizer.layout(spec)
    assert layout.names == ("0.weight", "0.bias", "1.bias", "5.weight", "5.bias"), "one number, 2.weight, is not made"
    back = tokenizer.tensors(tokenizer.tokens(held, spec), spec)
    assert same({n: back[n] for n in layout.names}, {n: held[n] for n in layout.names})
    assert bool((back["1.weight"] == 1.5).all())
    zoo = torch.cat([networks(spec, 3, seed)["4.weight"] for seed in range(3)])
    assert torch.equal(back["4.weight"], zoo.double().mean(0).float().expand(2, -1, -1))
    first = fitted({"policies": rules})
    assert torch.equal(first.template.get("4.bias"), networks(spec)["4.bias"][0])
    all_made = fitted({"policies": [{"policy": "generate"}]})
    assert all_made.layout(spec).names == tuple(slot.name for slot in spec.slots)


def test_statistics_of_norms_are_recalibrated_and_a_bias_of_one_class_is_made() -> None:
    slots = (Slot("n.running_var", (4,), "F32", "bias", 1), Slot("head.weight", (1, 4), "F32", "head", 4, None, 0))
    spec = TargetSpec((*slots, Slot("head.bias", (1,), "F32", "bias", 4, None, 0)))
    tokenizer = Tokenizer.of({}, spec)
    assert [rule.policy for rule in tokenizer.rules.values()] == ["recalibrate", "generate", "generate"]


def test_a_template_with_classes_has_those_alone() -> None:
    tokenizer = fitted({"policies": [{"policy": "template", "name": "5.bias"}]})
    other = target(7)
    tokens = tokenizer.tokens(networks(other), other)
    with pytest.raises(InvalidInput, match=r"tensor 5\.bias is from a template of \[5\], not \[7\]"):
        tokenizer.tensors(tokens, other)
    assert tokenizer.tensors(tokens, other, ["5.weight"])["5.weight"].shape == (3, 7, 6)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_few_tensors_can_be_had_without_the_others(normaliser: str) -> None:
    spec, tokenizer = target(), fitted({"normaliser": normaliser, "views": ["delta"]})
    tokens = tokenizer.tokens(networks(spec), spec)
    names = ["5.bias", "2.weight", "0.weight"]
    few, everything = tokenizer.tensors(tokens, spec, names), tokenizer.tensors(tokens, spec)
    assert list(few) == names
    assert all(torch.equal(few[name], everything[name]) for name in names)
    with pytest.raises(InvalidInput, match="is no tensor of the target"):
        tokenizer.tensors(tokens, spec, ["9.weight"])


def test_the_mean_over_classes_is_nothing_to_a_softmax() -> None:
    spec, tokenizer = target(), fitted({"views": ["gauge"]})
    held = networks(spec)
    back = tokenizer.tensors(tokenizer.tokens(held, spec), spec)
    assert torch.allclose(back["5.weight"].mean(1), torch.zeros(3, 6), atol=1e-7)
    x = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
    before, after = (torch.baddbmm(w["5.bias"][:, None], x, w["5.weight"].mT).softmax(-1) for w in (held, back))
    assert torch.allclose(before, after, atol=1e-6)
    assert not torch.equal(held["5.weight"], back["5.weight"])
    one = torch.ones(2, 1, 3)
    assert torch.equal(without_class_mean(one, 0), one), "one class is no softmax"


@given(seed=st.integers(0, 100), shape=st.sampled_from([(7, 3, 5), (3, 3, 3), (2, 4, 9), (9, 4, 2), (6, 1, 6)]))
@settings(max_examples=60)
def test_low_rank_pairs_with_one_product_become_one_pair(seed: int, shape: tuple[int, int, int]) -> None:
    rng = torch.Generator().manual_seed(seed)
    out, rank, inputs = shape
    up, down = (torch.randn(2, *size, generator=rng).double() for size in ((out, rank), (rank, inputs)))
    turn = torch.randn(2, rank, rank, generator=rng).double() + 2 * torch.eye(rank)
    found = canonical_pair(up, down)
    again = canonical_pair(up @ turn, torch.linalg.solve(turn, down))
    assert [t.shape for t in found] == [up.shape, down.shape]
    assert torch.allclose(found[0] @ found[1], up @ down, atol=1e-9)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(found, again, strict=True))
    sizes = found[0].norm(dim=1)
    assert torch.allclose(sizes, found[1].norm(dim=2)), "sqrt(S) in each"
    assert bool((sizes.diff(dim=1) <= 1e-9).all())
    largest = found[0].gather(1, found[0].abs().argmax(1, keepdim=True))
    assert bool((largest >= 0).all())


def test_low_rank_pairs_are_found_by_name_and_keep_their_product() -> None:
    names = {"q.lora_A.default.weight": (2, 6), "q.lora_B.default.weight": (5, 2), "q.alpha": (1,)}
    names |= {"c.lora_down.weight": (2, 3, 3, 3), "c.lora_up.weight": (4, 2, 1, 1), "k.lora_A.weight": (2, 6)}
    spec = TargetSpec(tuple(Slot(name, shape, "F32", "matrix", 1) for name, shape in names.items()))
    pairs = [tuple(names)[:2], ("c.lora_down.weight", "c.lora_up.weight")]
    assert list(lora_pairs(spec.slots)) == pairs
    held = networks(spec, 2)
    held[pairs[0][1]].zero_()  # as an adapter begins
    tokenizer = fitted({"views": ["lora_svd"], "layout": "patch"}, spec, (held, spec))
    back = tokenizer.tensors(tokenizer.tokens(held, spec), spec)
    for down, up in pairs:
        before, after = (w[up].flatten(2) @ w[down].flatten(2) for w in (held, back))
        assert torch.allclose(before, after, atol=1e-6)
    assert torch.equal(back["k.lora_A.weight"], held["k.lora_A.weight"])


def test_variances_are_seen_as_their_logs() -> None:
    spec = TargetSpec((Slot("n.running_var", (4,), "F32", "bias", 1),))
    options = {"views": ["log_var"], "policies": [{"policy": "generate"}], "normaliser": "none"}
    held = {"n.running_var": torch.tensor([[1e-6, 1.0, 20.0, 3e4]])}
    tokenizer = fitted(options, spec, (held, spec))
    tokens = tokenizer.tokens(held, spec)
    assert torch.allclose(tokens.flatten()[:4], held["n.running_var"].log().flatten())
    assert torch.allclose(tokenizer.tensors(tokens, spec)["n.running_var"], held["n.running_var"])
    assert bool((tokenizer.tensors(tokens - 9, spec)["n.running_var"] > 0).all())
    silent = tokenizer.tokens({"n.running_var": torch.zeros(1, 4)}, spec)
    assert torch.allclose(tokenizer.tensors(silent, spec)["n.running_var"], torch.full((1, 4), 1e-8))
    with pytest.raises(InvalidInput, match=r"n\.running_var holds a variance below 0"):
        tokenizer.tokens({"n.running_var": torch.full((1, 4), -0.1)}, spec)


def test_a_delta_is_from_the_first_network_or_from_the_mean() -> None:
    spec = target()
    zoo = torch.cat([networks(spec, 3, seed)["4.weight"] for seed in range(3)])
    for template, base in (("first", zoo[0]), ("mean", zoo.double().mean(0).float())):
        tokenizer = fitted({"views": ["delta"], "normaliser": "none", "template": template})
        rows = tokenizer.layout(spec).tensors(tokenizer.tokens(networks(spec), spec))
        assert torch.allclose(rows["4.weight"], networks(spec)["4.weight"] - base, atol=1e-7)
        wide = tokenizer.tokens(networks(spec), spec, torch.float64)
        assert torch.equal(tokenizer.tensors(wide, spec)["4.weight"], networks(spec)["4.weight"])


def test_what_was_fitted_is_saved_and_never_rounded() -> None:
    spec = target()
    for normaliser in NORMALISERS:
        options = {"normaliser": normaliser, "views": ["delta"]}
        first, other = fitted(options), Tokenizer.of(options, spec)
        other.load_state_dict(first.state_dict())
        tokens = first.tokens(networks(spec), spec)
        assert torch.equal(other.tokens(networks(spec), spec), tokens)
        assert same(copy.deepcopy(first).tensors(tokens, spec), first.tensors(tokens, spec))
        rounded = copy.deepcopy(first).half().normaliser.state_dict()
        assert same(rounded, first.normaliser.state_dict())
        with _no_memory():
            empty = Tokenizer.of(options, spec)
            assert empty.layout(spec).places.mask.shape == tokens.shape[1:]
        shapes = [{n: (t.shape, t.dtype) for n, t in made.state_dict().items()} for made in (empty, first)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "rows"}, "layout"),
        ({"width": -3}, "width"),
        ({"width": 1 << 30}, "too many"),
        ({"layout": "patch", "tile": [1 << 20, 1 << 20]}, "too many"),
        ({"layout": "patch", "tile": [0, 4]}, "tiles"),
        ({"layout": "patch", "width": 100}, "no room for a tile"),
        ({"views": ["svdd"]}, "views"),
        ({"rank": 3}, "a rank is of the view svd"),
        ({"rank": 0, "views": ["svd"]}, "rank"),
        ({"views": ["svd", "lora_svd"]}, "not both"),
        ({"policies": [{"policy": "constant"}]}, "a constant has a value"),
        ({"policies": [{"policy": "template"}]}, "no tensor of the target is generated"),
        ({"normalizer": "pow2"}, "no parameter normalizer"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Tokenizer.of(options, target())


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_loss_of_the_network_reaches_the_tokens(normaliser: str) -> None:
    spec, tokenizer = target(), fitted({"normaliser": normaliser})
    tokens = tokenizer.tokens(networks(spec), spec).requires_grad_()
    sum(t.square().sum() for t in tokenizer.tensors(tokens, spec).values()).backward()  # type: ignore[union-attr]
    assert tokens.grad is not None
    assert bool(tokens.grad.isfinite().all())
    assert float(tokens.grad.abs().max()) > 0


def test_a_zoo_is_read_once_unless_there_is_a_template() -> None:
    reads = 0

    def zoo() -> Iterator[tuple[Network, TargetSpec]]:
        nonlocal reads
        reads += 1
        yield networks(spec), spec

    spec = spec_of(nn.Linear(3, 4))
    Tokenizer.of({}, spec).fit(zoo)
    assert reads == 1


@pytest.mark.cuda
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_gpu_gives_the_same_tokens(normaliser: str) -> None:
    spec, tokenizer = target(), fitted({"normaliser": normaliser, "views": ["delta"]})
    held = networks(spec)
    tokens = tokenizer.tokens(held, spec)
    back = tokenizer.tensors(tokens, spec)
    tokenizer.cuda()
    there = tokenizer.tokens({name: tensor.cuda() for name, tensor in held.items()}, spec)
    assert torch.allclose(there.cpu(), tokens, rtol=1e-6, atol=1e-7)
    again = tokenizer.tensors(there, spec)
    assert all(torch.allclose(again[name].cpu(), back[name], rtol=1e-6, atol=1e-7) for name in back)
